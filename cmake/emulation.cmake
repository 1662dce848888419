# CUDA kernels compiled by g++ (docs/emulation.md): the emulator, its CTest programs, and, with
# ATLAS_EXT_EMULATED, the Python module atlas_ext/_emulated.*.so.
option(ATLAS_EXT_EMULATED "Build the emulated operators; needs a Python with torch and pybind11" OFF)

# Compiled without instrumentation: what the emulator does is no access of any CUDA thread's.
file(GLOB runtime_sources CONFIGURE_DEPENDS csrc/kernels/cuda/emulation/*.cpp)
add_library(atlas_emulation STATIC ${runtime_sources})
target_include_directories(atlas_emulation PUBLIC csrc)
target_link_libraries(atlas_emulation PUBLIC Threads::Threads ${CMAKE_DL_LIBS})
target_compile_definitions(atlas_emulation PUBLIC ATLAS_EXT_EMULATED)
target_compile_options(atlas_emulation PUBLIC -g -Wno-unknown-pragmas
  -fmacro-prefix-map=${CMAKE_SOURCE_DIR}/=)
set_target_properties(atlas_emulation PROPERTIES POSITION_INDEPENDENT_CODE ON)
if(ATLAS_EXT_SANITIZE)
  target_compile_options(atlas_emulation PRIVATE -O2 -fno-sanitize=all)
endif()
if(ATLAS_EXT_SANITIZE STREQUAL "address")
  target_compile_definitions(atlas_emulation PUBLIC ATLAS_EMULATION_ADDRESS)
elseif(ATLAS_EXT_SANITIZE STREQUAL "thread")
  target_compile_definitions(atlas_emulation PUBLIC ATLAS_EMULATION_THREAD)
endif()

# g++ takes .cu for an object file unless told; a kernel's symbol names it in launch traces.
function(atlas_add_kernels target)
  foreach(source ${ARGN})
    if(source MATCHES "[.]cu$")
      set_source_files_properties(${source} PROPERTIES LANGUAGE CXX COMPILE_OPTIONS "-xc++")
    endif()
  endforeach()
  target_link_libraries(${target} PRIVATE atlas_emulation)
endfunction()

if(ATLAS_EXT_EMULATED)
  find_package(Python REQUIRED COMPONENTS Interpreter Development.Module)
  execute_process(
    COMMAND ${Python_EXECUTABLE} -c
      "import pybind11, sysconfig, torch; print(torch.__path__[0], pybind11.get_include(), sysconfig.get_config_var('EXT_SUFFIX'), sep=';', end='')"
    OUTPUT_VARIABLE found RESULT_VARIABLE failed)
  if(failed)
    message(FATAL_ERROR "The emulated operators need torch and pybind11 in ${Python_EXECUTABLE}")
  endif()
  list(GET found 0 torch)
  list(GET found 1 pybind11)
  list(GET found 2 suffix)
  file(GLOB emulated_sources CONFIGURE_DEPENDS csrc/kernels/cuda/*.cu csrc/ops/*_cuda.cpp)
  list(FILTER emulated_sources EXCLUDE REGEX "/device_info[.]cu$") # asks the driver
  add_library(emulated MODULE ${emulated_sources} csrc/emulated_library.cpp)
  atlas_add_kernels(emulated ${emulated_sources})
  # As in the extension; kernels must be visible to the launch trace.
  file(GLOB emulated_operators csrc/ops/*_cuda.cpp)
  set_property(SOURCE ${emulated_operators} APPEND PROPERTY COMPILE_OPTIONS -fvisibility=hidden)
  target_compile_definitions(emulated PRIVATE TORCH_TARGET_VERSION=0x020a000000000000)
  target_include_directories(emulated SYSTEM PRIVATE ${torch}/include ${pybind11})
  # torch is imported first; its folder is named for sanitizers, which change the search.
  target_link_directories(emulated PRIVATE ${torch}/lib)
  target_link_libraries(emulated PRIVATE Python::Module torch torch_cpu c10)
  set_target_properties(emulated PROPERTIES PREFIX "" OUTPUT_NAME _emulated SUFFIX ${suffix})
  if(NOT ATLAS_EXT_SANITIZE)
    set_target_properties(emulated PROPERTIES LIBRARY_OUTPUT_DIRECTORY ${CMAKE_SOURCE_DIR}/atlas_ext)
  endif()
endif()

foreach(name primitives_test tiles_test bugs_test)
  add_executable(${name} tests/emulation/${name}.cu)
  atlas_add_kernels(${name} tests/emulation/${name}.cu)
  set_target_properties(${name} PROPERTIES ENABLE_EXPORTS ON) # symbols for traces
  add_test(NAME emulation.${name} COMMAND ${name})
  set_tests_properties(emulation.${name} PROPERTIES TIMEOUT 300)
endforeach()

# Bugs that end the program: the sanitizer's report is the test's success.
function(atlas_add_planted report orders)
  foreach(bug ${ARGN})
    foreach(order ${orders})
      add_test(NAME emulation.${bug}.${order} COMMAND bugs_test ${bug} ${order})
      set_tests_properties(emulation.${bug}.${order} PROPERTIES TIMEOUT 120
        ENVIRONMENT "TSAN_OPTIONS=halt_on_error=1" PASS_REGULAR_EXPRESSION "${report}")
    endforeach()
  endforeach()
endfunction()
if(ATLAS_EXT_SANITIZE STREQUAL "address")
  atlas_add_planted("AddressSanitizer: (use-after-poison|heap-buffer-overflow)|runtime error: index" "forward"
    shared_write_past_end shared_read_past_end global_out_of_bounds)
elseif(ATLAS_EXT_SANITIZE STREQUAL "thread")
  atlas_add_planted("ThreadSanitizer: data race" "forward;reverse;random"
    missing_barrier missing_sync_warp shuffle_is_no_sync cross_block overwritten_stage
    copy_no_barrier)
endif()
