#include <Python.h>
#include <torch/csrc/stable/library.h>

// The module holds nothing: importing it loads the library, whose static initialisers register the
// operators.
extern "C" __attribute__((visibility("default"))) PyObject* PyInit__C(void) {
  static PyModuleDef module = {
      PyModuleDef_HEAD_INIT, "_C", nullptr, 0, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&module);
}

STABLE_TORCH_LIBRARY(atlas_ext, library) {
  library.def("build_info() -> str");
  library.def("cuda_code_architecture(int device) -> int");
}
