// The emulated CUDA backend as one Python module: its controls, and namespace atlas_ext_emulated,
// whose operators are registered by csrc/ops/*_cuda.cpp.
#include <pybind11/pybind11.h>

#include "kernels/cuda/emulation/graph.h"
#include "kernels/cuda/emulation/settings.h"
#include "kernels/cuda/emulation/trace.h"
#include "schemas.h"

namespace py = pybind11;

namespace {

namespace emulation = atlas::emulation;

py::dict settings() {
  const emulation::Settings& all = emulation::settings();
  constexpr const char* kOrders[] = {"forward", "reverse", "random"};
  constexpr const char* kCopies[] = {"early", "late", "random"};
  py::dict result;
  result["order"] = kOrders[static_cast<int>(all.order)];
  result["seed"] = all.random;
  result["cp_async"] = kCopies[static_cast<int>(all.copies)];
  result["capability"] = all.capability;
  result["multiprocessors"] = all.multiprocessors;
  result["shared_kib"] = all.shared_bytes >> 10;
  return result;
}

py::dict counters() {
  const emulation::Counters all = emulation::counters();
  py::dict result;
  result["launches"] = all.launches;
  result["blocks"] = all.blocks;
  result["barriers"] = all.barriers;
  result["warp_operations"] = all.warp_operations;
  result["cp_async"] = all.async_copies;
  result["ldmatrix"] = all.ldmatrix;
  result["mma"] = all.mma;
  return result;
}

void trace(const py::object& directory) {
  emulation::set_trace(directory.is_none() ? "" : py::str(directory).cast<std::string>());
}

}  // namespace

STABLE_TORCH_LIBRARY(atlas_ext_emulated, library) { atlas::define_schemas(library); }

PYBIND11_MODULE(_emulated, module) {
  module.doc() = "Controls of the emulated CUDA backend; see docs/emulation.md.";
  module.def("set_order", &emulation::set_order, py::arg("order"), py::arg("seed") = 1);
  module.def("set_cp_async", &emulation::set_copies, py::arg("mode"));
  module.def("set_device", &emulation::set_device, py::arg("capability"),
             py::arg("multiprocessors") = emulation::Settings().multiprocessors,
             py::arg("shared_kib") = 0);
  module.def("settings", &settings);
  module.def("counters", &counters);
  module.def("reset_counters", &emulation::reset_counters);
  module.def("trace", &trace, py::arg("directory").none(true));
  py::class_<emulation::Graph>(module, "Graph")
      .def(py::init<>())
      .def(
          "__enter__",
          [](emulation::Graph& graph) -> emulation::Graph& {
            graph.begin();
            return graph;
          },
          py::return_value_policy::reference)
      .def("__exit__", [](emulation::Graph& graph, const py::args&) { graph.end(); })
      .def("replay", &emulation::Graph::replay)
      .def_property_readonly("launches", &emulation::Graph::size);
}
