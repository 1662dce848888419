#pragma once
// What the CPU and the CUDA body of newton_schulz share.
#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <string>

#include "ops/newton_schulz_options.h"

namespace atlas::ops {

inline void check_newton_schulz(const char* op,
                                const Tensor& x,                     // [..., m, n]
                                const std::optional<Tensor>& table,  // [steps, 3]
                                const std::string& schedule, int64_t steps,
                                const std::string& scale, double eps) {
  check_floating(op, "x", x);
  ATLAS_CHECK(x.dim() >= 2 && x.size(x.dim() - 2) >= 1 && x.size(x.dim() - 1) >= 1, op, "x",
              "shape [..., m, n] with m, n >= 1", describe(x));
  ATLAS_CHECK(steps >= 1 && steps <= std::numeric_limits<int>::max(), op, "steps",
              "an integer >= 1", std::to_string(steps));
  check_schedule(op, "schedule", table, schedule, steps);
  if (table.has_value()) check_device(op, "schedule", *table, x);
  check_ns_scale(op, "scale", scale);
  ATLAS_CHECK(std::isfinite(eps) && eps >= 0, op, "eps", "a finite number >= 0",
              std::to_string(eps));
}

inline void check_newton_schulz_grad(const char* op, const Tensor& grad, const Tensor& x) {
  check_device(op, "grad", grad, x);
  check_shape(op, "grad", grad, {x.sizes().begin(), x.sizes().end()}, "[..., m, n]");
  ATLAS_CHECK(grad.scalar_type() == x.scalar_type(), op, "grad", dtype_name(x.scalar_type()),
              describe(grad));
}

}  // namespace atlas::ops
