// Runs a package of AOTInductor without Python: PACKAGE LIBRARY ROWS COLUMNS; prints the result of an input of i / 7.

#include <ATen/ops/arange.h>
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <cstdio>
#include <cstdlib>

int main(int, char** arguments) {
  if (dlopen(arguments[2], RTLD_NOW | RTLD_GLOBAL) == nullptr) {
    std::fprintf(stderr, "%s\n", dlerror());
    return 1;
  }
  torch::inductor::AOTIModelPackageLoader model(arguments[1]);
  const int64_t rows = std::atoll(arguments[3]);
  const int64_t columns = std::atoll(arguments[4]);
  const at::Tensor x = at::arange(rows * columns).to(at::kFloat).div(7).sin().reshape({rows, columns});
  const at::Tensor y = model.run({x})[0].contiguous();
  for (int64_t i = 0; i < y.numel(); ++i) std::printf("%a\n", static_cast<double>(y.data_ptr<float>()[i]));
  return 0;
}
