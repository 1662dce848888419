#pragma once
// Argument checks of operator bodies. Every message names the op, the argument, what was wanted and
// what came.
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <initializer_list>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace atlas::ops {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

[[noreturn]] inline void fail(const char* op, const std::string& argument,
                              const std::string& wanted, const std::string& got) {
  throw std::runtime_error(std::string(op) + ": " + argument + ": wanted " + wanted + ", got " +
                           got);
}

// The strings are built on failure only.
#define ATLAS_CHECK(condition, op, argument, wanted, got)            \
  do {                                                               \
    if (!(condition)) ::atlas::ops::fail(op, argument, wanted, got); \
  } while (false)

inline std::string dtype_name(ScalarType type) {
  switch (type) {
    case ScalarType::Float:
      return "float32";
    case ScalarType::Double:
      return "float64";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Half:
      return "float16";
    case ScalarType::Byte:
      return "uint8";
    case ScalarType::Char:
      return "int8";
    case ScalarType::Short:
      return "int16";
    case ScalarType::Int:
      return "int32";
    case ScalarType::Long:
      return "int64";
    case ScalarType::Bool:
      return "bool";
    case ScalarType::ComplexFloat:
      return "complex64";
    case ScalarType::ComplexDouble:
      return "complex128";
    default:
      return "dtype number " + std::to_string(static_cast<int>(type));
  }
}

template <class Sizes>
std::string shape_text(const Sizes& sizes) {
  std::ostringstream text;
  text << "[";
  for (size_t i = 0; i < sizes.size(); ++i) text << (i ? ", " : "") << sizes[i];
  text << "]";
  return text.str();
}

inline std::string shape_text(std::initializer_list<int64_t> sizes) {
  return shape_text(std::vector<int64_t>(sizes));
}

inline std::string describe(const Tensor& tensor) {
  return dtype_name(tensor.scalar_type()) + " " + shape_text(tensor.sizes()) +
         (tensor.is_cpu()    ? " on the CPU"
          : tensor.is_cuda() ? " on CUDA"
                             : " on another device");
}

inline bool is_floating(const Tensor& tensor) {
  const ScalarType type = tensor.scalar_type();
  return type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::BFloat16 ||
         type == ScalarType::Half;
}

inline void check_floating(const char* op, const std::string& argument, const Tensor& tensor) {
  ATLAS_CHECK(is_floating(tensor), op, argument, "float32, float64, bfloat16 or float16",
              describe(tensor));
}

inline void check_device(const char* op, const std::string& argument, const Tensor& tensor,
                         const Tensor& input) {
  ATLAS_CHECK(
      tensor.is_cpu() == input.is_cpu() && tensor.get_device_index() == input.get_device_index(),
      op, argument,
      input.is_cpu() ? "a tensor on the CPU" : "a tensor on the device of the first argument",
      describe(tensor));
}

// The dtype that sums and states have: float64 for float64 inputs, else float32.
inline ScalarType compute_type(const Tensor& tensor) {
  return tensor.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// A gate, weight or scale: of the inputs' own dtype or of the dtype of the sums.
inline void check_dtype_beside(const char* op, const std::string& argument, const Tensor& tensor,
                               const Tensor& input) {
  const ScalarType type = tensor.scalar_type();
  ATLAS_CHECK(type == input.scalar_type() || type == compute_type(input), op, argument,
              dtype_name(compute_type(input)) + (compute_type(input) == input.scalar_type()
                                                     ? ""
                                                     : " or " + dtype_name(input.scalar_type())),
              describe(tensor));
}

// `names` spells the shape with letters, as the documentation does.
inline void check_shape(const char* op, const std::string& argument, const Tensor& tensor,
                        const std::vector<int64_t>& shape, const char* names) {
  const auto sizes = tensor.sizes();
  bool same = sizes.size() == shape.size();
  for (size_t i = 0; same && i < shape.size(); ++i) same = sizes[i] == shape[i];
  ATLAS_CHECK(same, op, argument, std::string("shape ") + names + " = " + shape_text(shape),
              describe(tensor));
}

}  // namespace atlas::ops
