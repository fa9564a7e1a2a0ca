# csrc without its bindings: every kernel and step once per instruction set, picked at run time.
# Wants `warnings`, `optimisation` and `openmp`; gives `cpu_sources` and KDGEN_X86.
set(csrc ${CMAKE_CURRENT_LIST_DIR}/../csrc)
set(kernels
  ${csrc}/bias_residual.cpp
  ${csrc}/chain_step.cpp
  ${csrc}/ddim_update.cpp
  ${csrc}/group_norm_silu.cpp
  ${csrc}/philox.cpp
  ${csrc}/scale_input.cpp
  ${csrc}/table.cpp
  ${csrc}/to_uint8.cpp)
set(convolutions
  ${csrc}/engine/direct.cpp
  ${csrc}/engine/winograd.cpp)
set(steps
  ${csrc}/engine/attend.cpp
  ${csrc}/engine/normalise.cpp
  ${csrc}/engine/pointwise.cpp
  ${csrc}/engine/resample.cpp
  ${csrc}/engine/table.cpp
  ${convolutions})
set(objects "")

function(add_kernels isa)
  add_library(kernels_${isa} OBJECT ${kernels})
  target_include_directories(kernels_${isa} PRIVATE ${csrc})
  target_compile_definitions(kernels_${isa} PRIVATE KDGEN_TARGET=${isa})
  # Rounding is part of the definition of an op: no contraction, NaN and infinity respected.
  # Without -fno-thread-jumps, gcc turns each clamp in a vector loop into masks and copies.
  target_compile_options(kernels_${isa} PRIVATE ${warnings} ${optimisation} -ffp-contract=off -fno-math-errno -fno-signed-zeros
    -fno-trapping-math -fopenmp-simd $<$<CXX_COMPILER_ID:GNU>:-fno-thread-jumps> ${ARGN})
  target_link_libraries(kernels_${isa} PRIVATE ${openmp})
  set(objects ${objects} $<TARGET_OBJECTS:kernels_${isa}> PARENT_SCOPE)
endfunction()

# The engine's steps are measured against float64, not defined to the last bit: sums contract.
function(add_engine isa sources)
  add_library(engine_${isa} OBJECT ${sources})
  target_include_directories(engine_${isa} PRIVATE ${csrc})
  target_compile_definitions(engine_${isa} PRIVATE KDGEN_TARGET=${isa})
  target_compile_options(engine_${isa} PRIVATE ${warnings} ${optimisation} -ffp-contract=fast -fno-math-errno
    -fno-trapping-math -fopenmp-simd ${ARGN})
  target_link_libraries(engine_${isa} PRIVATE ${openmp})
  set(objects ${objects} $<TARGET_OBJECTS:engine_${isa}> PARENT_SCOPE)
endfunction()

add_kernels(baseline)
add_engine(baseline "${steps}")
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64|amd64")
  set(KDGEN_X86 ON)
  set(avx2 -mavx2 -mfma -mtune=haswell)
  set(avx512 -mavx512f -mavx512vl -mavx512bw -mavx512dq -mfma -mprefer-vector-width=512)
  add_kernels(avx2 ${avx2})
  add_kernels(avx512 ${avx512})
  add_engine(avx2 "${steps}" ${avx2})
  add_engine(avx512 "${steps}" ${avx512})
  # Its other steps are those of avx512: csrc/isa.cpp.
  add_engine(avx512_vnni "${convolutions}" ${avx512} -mavx512vnni)
  add_engine(avx512_bf16 "${steps}" ${avx512} -mavx512vnni -mavx512bf16)
endif()

set(cpu_sources
  ${csrc}/isa.cpp
  ${csrc}/engine/arena.cpp
  ${csrc}/engine/call.cpp
  ${csrc}/engine/pages.cpp
  ${csrc}/engine/program.cpp
  ${csrc}/engine/running.cpp
  ${csrc}/engine/step.cpp
  ${objects})
