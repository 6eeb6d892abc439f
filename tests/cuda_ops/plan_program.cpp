// Prints how cuda_ops/csrc/cuda/plan.h cuts what the lines of the input describe; with the argument
// `conv` or `roi`, the shapes in 32 bits of the ones in the lines.
#include "plan.h"

#include <iostream>
#include <string>

#include "roi_plan.h"

using namespace segdeform;

template <typename Int, typename F>
void for_numbers(ConvGeometry<Int>& g, F f) {
  for (Int* number : {&g.batch, &g.channels, &g.height, &g.width, &g.out_channels, &g.out_height,
                      &g.out_width, &g.kernel_h, &g.kernel_w, &g.stride_h, &g.stride_w, &g.pad_h,
                      &g.pad_w, &g.dilation_h, &g.dilation_w, &g.groups, &g.offset_groups})
    f(*number);
}

template <typename Int, typename F>
void for_numbers(RoiShape<Int>& g, F f) {
  for (Int* number :
       {&g.batch, &g.channels, &g.height, &g.width, &g.rois, &g.out_channels, &g.pooled_h,
        &g.pooled_w, &g.group, &g.classes, &g.part_h, &g.part_w, &g.samples})
    f(*number);
}

template <typename Shape>
int print_shapes() {
  Shape g{};
  while (for_numbers(g, [](auto& number) { std::cin >> number; }), std::cin) {
    auto shapes = cuda::on_device(g);
    if (shapes) for_numbers(*shapes, [](auto number) { std::cout << number << " "; });
    std::cout << (shapes ? "" : "refused") << "\n";
  }
  return 0;
}

int main(int count, char** arguments) {
  if (count > 1)
    return arguments[1] == std::string("roi") ? print_shapes<RoiGeometry>()
                                              : print_shapes<Geometry>();
  Geometry g{};
  int64_t workspace, element_bytes, vector, sorted_images, cells, multiprocessors;
  while (std::cin >> g.batch >> g.channels >> g.groups >> g.out_height >> g.out_width >>
         g.kernel_h >> g.kernel_w >> g.offset_groups >> workspace >> element_bytes >> vector >>
         sorted_images >> cells >> multiprocessors) {
    const cuda::BackwardPlan plan(g, workspace, element_bytes, vector, sorted_images,
                                  multiprocessors);
    const cuda::Waves waves{multiprocessors, 2, 4, 4};
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
              << ", \"forward\": " << cuda::forward_rows(plan.rows, workspace, row_bytes, waves)
              << "}\n";
  }
}
