# kdgen._cuda: csrc/cuda, one file a direction of an op, with the CUDA runtime inside.
set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_EXTENSIONS OFF)
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)

add_library(cuda_kernels OBJECT
  csrc/cuda/attention_backward.cu
  csrc/cuda/attention_forward.cu
  csrc/cuda/bias_residual.cu
  csrc/cuda/group_norm_silu_backward.cu
  csrc/cuda/group_norm_silu_forward.cu
  csrc/cuda/philox.cu
  csrc/cuda/steps.cu)
set_target_properties(cuda_kernels PROPERTIES
  CUDA_ARCHITECTURES "${KDGEN_CUDA_ARCHS}" CUDA_VISIBILITY_PRESET hidden)
# As on the CPU: rounding is part of the definition, so products and sums are fused only by name.
# In strict mode a warning is an error, and so is a register that spills.
target_compile_options(cuda_kernels PRIVATE --fmad=false -Xcompiler=-Wall
  -Xptxas=-warn-spills$<$<BOOL:${KDGEN_WERROR}>:,-Werror>
  "$<$<BOOL:${KDGEN_WERROR}>:SHELL:-Werror all-warnings>")

list(JOIN KDGEN_CUDA_ARCHS "," archs)
pybind11_add_module(_cuda MODULE NO_EXTRAS csrc/cuda/bindings.cpp $<TARGET_OBJECTS:cuda_kernels>)
target_compile_definitions(_cuda PRIVATE KDGEN_MODULE=_cuda KDGEN_EMULATED=0
  KDGEN_VERSION="${PROJECT_VERSION}" KDGEN_CUDA_ARCHS="${archs}")
target_compile_options(_cuda PRIVATE ${warnings})
target_link_libraries(_cuda PRIVATE CUDA::cudart_static)
install(TARGETS _cuda LIBRARY DESTINATION kdgen)
