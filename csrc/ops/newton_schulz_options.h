#pragma once
// Reading and checking Newton-Schulz options, shared by newton_schulz and the omega rule.
#include <torch/csrc/stable/ops.h>

#include <cmath>
#include <optional>
#include <string>
#include <vector>

#include "ops/check.h"

namespace atlas::ops {

// `table` is the argument that holds a schedule of the caller's own, [steps, 3].
inline void check_schedule(const char* op, const char* argument, const std::optional<Tensor>& table,
                           const std::string& schedule, int64_t steps) {
  if (!table.has_value()) {
    ATLAS_CHECK(schedule == "muon" || schedule == "polar_express", op, argument,
                "'muon', 'polar_express' or a tensor [steps, 3]", "'" + schedule + "'");
    return;
  }
  check_floating(op, argument, *table);
  check_shape(op, argument, *table, {steps, 3}, "[steps, 3]");
}

inline void check_ns_scale(const char* op, const char* argument, const std::string& scale) {
  ATLAS_CHECK(scale == "none" || scale == "rms" || scale == "shape", op, argument,
              "'none', 'rms' or 'shape'", "'" + scale + "'");
}

// The rows a, b, c of all steps, [steps, 3] (spec section 4).
inline std::vector<double> schedule_rows(const std::optional<Tensor>& table,
                                         const std::string& schedule, int64_t steps) {
  constexpr double muon[3] = {3.4445, -4.7750, 2.0315};
  // arXiv 2505.16932; all rows but the last are divided by powers of the safety factor.
  constexpr double safety = 1.01;
  constexpr int64_t last = 7;
  constexpr double polar_express[last + 1][3] = {
      {8.28721201814563, -23.595886519098837, 17.300387312530933},
      {4.107059111542203, -2.9478499167379106, 0.5448431082926601},
      {3.9486908534822946, -2.908902115962949, 0.5518191394370137},
      {3.3184196573706015, -2.488488024314874, 0.51004894012372},
      {2.300652019954817, -1.6689039845747493, 0.4188073119525673},
      {1.891301407787398, -1.2679958271945868, 0.37680408948524835},
      {1.8750014808534479, -1.2500016453999487, 0.3750001645474248},
      {1.875, -1.25, 0.375}};
  std::vector<double> rows(3 * steps);
  if (table.has_value()) {
    const Tensor values = torch::stable::contiguous(torch::stable::to(*table, ScalarType::Double));
    for (int64_t i = 0; i < 3 * steps; ++i) rows[i] = values.const_data_ptr<double>()[i];
    return rows;
  }
  for (int64_t step = 0; step < steps; ++step) {
    const int64_t row = step < last ? step : last;
    double divisor = row < last ? safety : 1;
    for (int64_t i = 0; i < 3; ++i) {
      rows[3 * step + i] = schedule == "muon" ? muon[i] : polar_express[row][i] / divisor;
      if (row < last) divisor *= safety * safety;
    }
  }
  return rows;
}

// Factor on the result, for m rows and n columns as the caller gives them.
inline double ns_factor(const std::string& scale, int64_t m, int64_t n) {
  const double rows = static_cast<double>(m), columns = static_cast<double>(n);
  if (scale == "rms") return 0.2 * std::sqrt(rows > columns ? rows : columns);
  if (scale == "shape") return rows > columns ? std::sqrt(rows / columns) : 1;
  return 1;
}

}  // namespace atlas::ops
