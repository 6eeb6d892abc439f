// Prints how cuda_ops/csrc/cuda/plan.h cuts what the lines of the input describe.
#include "plan.h"

#include <iostream>

int main() {
  using namespace segdeform;
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
