// Prints how cuda_ops/csrc/cuda/plan.h cuts what the lines of the input describe; with an argument,
// the shapes in 32 bits of the ones in the lines.
#include "plan.h"

#include <iostream>

using namespace segdeform;

template <typename Stream, typename Shape, typename F>
void for_numbers(Stream& stream, Shape& g, F f) {
  for (auto* number : {&g.batch, &g.channels, &g.height, &g.width, &g.out_channels, &g.out_height,
                       &g.out_width, &g.kernel_h, &g.kernel_w, &g.stride_h, &g.stride_w, &g.pad_h,
                       &g.pad_w, &g.dilation_h, &g.dilation_w, &g.groups, &g.offset_groups})
    f(stream, *number);
}

int print_shapes() {
  Geometry g{};
  while (for_numbers(std::cin, g, [](auto& in, auto& number) { in >> number; }), std::cin) {
    auto shapes = cuda::on_device(g);
    if (shapes) for_numbers(std::cout, *shapes, [](auto& out, auto n) { out << n << " "; });
    std::cout << (shapes ? "" : "refused") << "\n";
  }
  return 0;
}

int main(int count, char**) {
  if (count > 1) return print_shapes();
  Geometry g{};
  int64_t workspace, element_bytes, vector, sorted_images, cells;
  while (std::cin >> g.batch >> g.channels >> g.groups >> g.out_height >> g.out_width >>
         g.kernel_h >> g.kernel_w >> g.offset_groups >> workspace >> element_bytes >> vector >>
         sorted_images >> cells) {
    const cuda::BackwardPlan plan(g, workspace, element_bytes, vector, sorted_images);
    std::cout << "{\"slices\": [";
    const char* comma = "";
    for (const cuda::Slice& s : plan.slices) {
      std::cout << comma << "[" << s.first_channel << "," << s.channels << "," << s.group_channels
                << "," << s.groups() << "]";
      comma = ",";
    }
    std::cout << "], \"widest\": " << plan.widest() << ", \"sortings\": [";
    comma = "";
    plan.for_sortings([&](int64_t first, int64_t end) {
      std::cout << comma << "[" << first << "," << end << ",[";
      const char* inner = "";
      plan.for_chunks(first, end, [&](int64_t row, int64_t count) {
        std::cout << inner << "[" << row << "," << count << "]";
        inner = ",";
      });
      std::cout << "]]";
      comma = ",";
    });
    const int64_t row_bytes = g.taps() * g.channels * element_bytes;
    std::cout << "], \"images\": " << cuda::images_to_sort(g, cells, workspace)
              << ", \"forward\": " << cuda::forward_rows(plan.rows, workspace, row_bytes) << "}\n";
  }
}
