#include <Python.h>

#include "schemas.h"

// The module holds nothing: importing it loads the library, whose static initialisers register the
// operators.
extern "C" __attribute__((visibility("default"))) PyObject* PyInit__C(void) {
  static PyModuleDef module = {
      PyModuleDef_HEAD_INIT, "_C", nullptr, 0, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&module);
}

STABLE_TORCH_LIBRARY(atlas_ext, library) { atlas::define_schemas(library); }
