# Whether CUDA kernels can and shall be built. A machine without a working CUDA compiler, or with
# half of one, is an ordinary machine: only KDGEN_CUDA=ON makes an error of it.
#
# A macro, not a function: a language must be enabled in the scope that uses it.
macro(find_nvcc found)
  set(${found} OFF)
  if(NOT KDGEN_CUDA STREQUAL "OFF")
    set(why "no nvcc was found on PATH, in CUDA_HOME or in /usr/local/cuda")
    if(NOT CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX})
      # CMake looks on PATH only.
      find_program(KDGEN_NVCC nvcc HINTS $ENV{CUDA_HOME}/bin $ENV{CUDA_PATH}/bin
        PATHS /usr/local/cuda/bin /opt/cuda/bin)
      if(KDGEN_NVCC)
        set(CMAKE_CUDA_COMPILER "${KDGEN_NVCC}")
      endif()
    endif()
    # Headers and library first: with nvcc alone, enabling the language would end the configuration.
    find_package(CUDAToolkit 11.8 QUIET)
    if(CMAKE_CUDA_COMPILER OR DEFINED ENV{CUDACXX})
      set(why "nvcc is here, but does not work or has no headers and libcudart_static 11.8 or newer")
    endif()
    if(TARGET CUDA::cudart_static)
      set(CMAKE_CUDA_ARCHITECTURES 90-real) # for the probes only, one is enough
      include(CheckLanguage)
      check_language(CUDA)
      if(CMAKE_CUDA_COMPILER)
        enable_language(CUDA)
        set(${found} ON)
      endif()
    endif()
    if(NOT ${found} AND KDGEN_CUDA STREQUAL "ON")
      message(FATAL_ERROR "kdgen: KDGEN_CUDA=ON, but ${why}")
    endif()
  endif()
endmacro()
