#pragma once
// Launch traces: a directory with trace.jsonl, one JSON object per launch, and the contents of
// every registered buffer before and after it. ATLAS_EXT_TRACE names the directory
// (docs/emulation.md).
#include <cstddef>
#include <string>

#include "kernels/cuda/emulation/launch.h"

namespace atlas::emulation {

// How launches use a buffer. `written`: nobody reads it before a launch has written to it.
// `scratch`: the same, and its contents have types that its dtype does not tell.
enum class Use { read, written, scratch };

// What launches of this OS thread may touch, until forget_buffers().
void register_buffer(const void* address, size_t bytes, const char* dtype, const char* name,
                     Use use);
void forget_buffers();

// Empty: no traces. Starts a new trace in the directory.
void set_trace(const std::string& directory);
bool tracing();

void trace_before(const Launch& launch, const char* kernel);
void trace_after();

}  // namespace atlas::emulation
