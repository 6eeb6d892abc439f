// Schemas of all operators. Kernels register themselves beside their code, per device.
#include <torch/csrc/stable/library.h>

#if !defined(SEGDEFORM_LIBRARY)  // tests build the CUDA kernels as host code, under another name
#define SEGDEFORM_LIBRARY segdeform
#endif
// torch 2.10 takes the name as it is written: here the macro is expanded before it sees it.
#define SEGDEFORM_DEFINE(name, library) STABLE_TORCH_LIBRARY(name, library)

SEGDEFORM_DEFINE(SEGDEFORM_LIBRARY, library) {
  library.def(
      "deform_conv2d(Tensor input, Tensor offset, Tensor weight, Tensor? bias, Tensor? mask, "
      "int[2] stride, int[2] padding, int[2] dilation, int groups, int offset_groups) -> Tensor");
  // The same in inference; `packing` keeps the weight in the kernels' layout from call to call and
  // is made anew whenever it does not belong to the weight (packing.h).
  library.def(
      "deform_conv2d_packed(Tensor input, Tensor offset, Tensor weight, Tensor? bias, "
      "Tensor? mask, Tensor(a!) packing, int[2] stride, int[2] padding, int[2] dilation, "
      "int groups, int offset_groups) -> Tensor");
  // Gradients that are not asked for come back as empty tensors of shape [0].
  library.def(
      "deform_conv2d_backward(Tensor grad, Tensor input, Tensor offset, Tensor weight, "
      "Tensor? mask, int[2] stride, int[2] padding, int[2] dilation, int groups, "
      "int offset_groups, bool need_input, bool need_offset, bool need_weight, bool need_bias, "
      "bool need_mask) -> (Tensor grad_input, Tensor grad_offset, Tensor grad_weight, "
      "Tensor grad_bias, Tensor grad_mask)");
  library.def(
      "deform_roi_pool(Tensor input, Tensor rois, Tensor? offset, int[2] output_size, "
      "float spatial_scale, int sampling_ratio, float gamma) -> Tensor");
  library.def(
      "deform_roi_pool_backward(Tensor grad, Tensor input, Tensor rois, Tensor? offset, "
      "int[2] output_size, float spatial_scale, int sampling_ratio, float gamma, "
      "bool need_input, bool need_offset) -> (Tensor grad_input, Tensor grad_offset)");
  library.def(
      "ps_deform_roi_pool(Tensor input, Tensor rois, Tensor? trans, float spatial_scale, "
      "int output_channels, int group_size, int pooled_size, int part_size, int sample_per_part, "
      "float trans_std) -> Tensor");
  library.def(
      "ps_deform_roi_pool_backward(Tensor grad, Tensor input, Tensor rois, Tensor? trans, "
      "float spatial_scale, int output_channels, int group_size, int pooled_size, int part_size, "
      "int sample_per_part, float trans_std, bool need_input, bool need_trans) "
      "-> (Tensor grad_input, Tensor grad_trans)");
  // Labels alone, for inference: neither differentiated nor traced.
  library.def("enlarged_labels(Tensor maps, int stride, int height, int width) -> Tensor");
}
