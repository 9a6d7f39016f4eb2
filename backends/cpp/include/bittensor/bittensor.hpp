#pragma once

/// Packed codes and their integer product. What works on group-quantized weights has headers of its own: prepare.hpp,
/// linear.hpp, linear_gradient.hpp, embedding.hpp, conv2d.hpp, attention.hpp, decoder.hpp.

#include "bittensor/codes.hpp"
#include "bittensor/isa.hpp"
#include "bittensor/kernel_set.hpp"
#include "bittensor/kernel_table.hpp"
#include "bittensor/pack.hpp"
#include "bittensor/packed_matmul.hpp"
#include "bittensor/packed_tensor.hpp"
#include "bittensor/parallel.hpp"
#include "bittensor/static_packed_tensor.hpp"
#include "bittensor/thread_pool.hpp"
