#pragma once

/// Marks what `libbittensor` offers to programs that link it; everything else stays hidden.
#define BITTENSOR_API __attribute__((visibility("default")))
