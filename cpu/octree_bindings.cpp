// Bindings of whole octrees: an image in memory, or one that comes in bands.
#include <algorithm>
#include <atomic>
#include <memory>
#include <optional>
#include <utility>

#include "bindings.hpp"
#include "octree.hpp"
#include "stream.hpp"

using namespace octreenca;

namespace {

// Of the way from every level but the coarsest to the next, where their channels differ.
using Maps = std::vector<std::optional<Array<float>>>;

std::vector<OctreeLevel> levels_of(const std::vector<WeightArrays<float>>& weights,
                                   const std::vector<int>& steps,
                                   const std::vector<std::vector<int>>& factors,
                                   const Maps& from_parent, std::uint64_t threshold) {
  if (weights.empty() || steps.size() != weights.size() || factors.size() + 1 != weights.size() ||
      from_parent.size() != factors.size()) {
    refuse("weights, steps, factors and from_parent name different numbers of levels");
  }
  if (weights.size() > kMostLevels) {
    refuse(std::to_string(weights.size()) + " levels are more than the engine computes with: " +
           std::to_string(kMostLevels));
  }
  std::vector<OctreeLevel> levels;
  for (std::size_t i = 0; i < weights.size(); ++i) {
    check_draws(steps[i], threshold);
    OctreeLevel level{raw_weights(weights[i]), steps[i], {1, 1, 1}, nullptr};
    if (i < factors.size()) {
      const auto axes = static_cast<std::size_t>(level.weights.dimension);
      if (factors[i].size() != axes) refuse("factors must name every axis");
      for (std::size_t axis = 0; axis < axes; ++axis) {
        const int factor = factors[i][axis];
        if (factor != 1 && factor != 2) refuse("factors must be 1 or 2");
        level.factor[3 - axes + axis] = factor;
      }
    }
    const auto& first = levels.empty() ? level.weights : levels[0].weights;
    if (level.weights.dimension != first.dimension || level.weights.inputs != first.inputs) {
      refuse("all levels must have the same axes and the image's channels");
    }
    levels.push_back(level);
  }
  for (std::size_t i = 0; i < from_parent.size(); ++i) {
    const RawWeights<float>&own = levels[i].weights, &above = levels[i + 1].weights;
    if (from_parent[i]) {
      expect(*from_parent[i], {own.channels - own.inputs, above.channels - own.inputs},
             "from_parent");
      levels[i].from_parent = from_parent[i]->data();
    } else if (own.channels != above.channels) {
      refuse("levels of " + std::to_string(own.channels) + " and " +
             std::to_string(above.channels) + " channels need a matrix from_parent between them");
    }
  }
  return levels;
}

int most_channels(const std::vector<OctreeLevel>& levels) {
  int most = 0;
  for (const OctreeLevel& level : levels) most = std::max(most, level.weights.channels);
  return most;
}

Image image_of(const py::array_t<float>& image, const RawWeights<float>& network) {
  const int dimension = network.dimension;
  if (image.ndim() != dimension + 1 || image.shape(0) != network.inputs) {
    refuse("image must be (channels, axes)");
  }
  expect_aligned(image, "image");
  const auto stride = [&](py::ssize_t axis) { return stride_of(image, axis, "image"); };
  return {image.data(),          network.inputs,        stride(0),
          dimension == 3 ? stride(1) : 0, stride(dimension - 1), stride(dimension)};
}

void check_logits(int logits, const RawWeights<float>& network) {
  if (logits < 1 || logits > network.channels - network.inputs) {
    refuse(std::to_string(logits) + " logits do not fit the " +
           std::to_string(network.channels - network.inputs) + " channels beside the image's");
  }
}

// Either labels or values are given, with room for `cells`.
Output output_of(int logits, bool background, std::optional<py::array>& labels,
                 std::optional<Array<float>>& values, std::int64_t cells) {
  Output output{logits, background, nullptr, 0, nullptr};
  if (labels.has_value() == values.has_value()) refuse("give either labels or values");
  if (labels) {
    const bool narrow = py::isinstance<py::array_t<std::uint8_t>>(*labels);
    if (!narrow && !py::isinstance<py::array_t<std::int16_t>>(*labels)) {
      refuse("labels must be uint8 or int16");
    }
    if (logits + background > (narrow ? 256 : 32768)) refuse("labels do not hold so many classes");
    if (labels->size() != cells || !(labels->flags() & py::array::c_style)) {
      refuse("labels must have the image's axes");
    }
    expect_aligned(*labels, "labels");
    output.labels = labels->mutable_data();
    output.label_bytes = narrow ? 1 : 2;
  } else {
    if (values->size() != product({cells, logits + background}, "values of these axes")) {
      refuse("values must be (classes, axes)");
    }
    expect_aligned(*values, "values");
    output.values = values->mutable_data();
  }
  return output;
}

using Counts = std::vector<std::pair<std::int64_t, std::int64_t>>;

Counts counts_of(const std::vector<NonFinite>& levels) {
  Counts counts;
  for (const NonFinite& level : levels) counts.emplace_back(level.cells, level.of);
  return counts;
}

Counts py_octree_forward(const py::array_t<float>& image,
                         const std::vector<WeightArrays<float>>& weights,
                         const std::vector<int>& steps,
                         const std::vector<std::vector<int>>& factors, const Maps& from_parent,
                         std::uint64_t seed, std::uint64_t threshold, std::uint32_t sample,
                         int logits, bool background, std::optional<py::array> labels,
                         std::optional<Array<float>> values, const std::string& kernels,
                         int threads, const std::string& schedule, bool bf16, bool half,
                         bool count_non_finite) {
  const Options options = options_of(kernels, threads, schedule, bf16, count_non_finite);
  const auto levels = levels_of(weights, steps, factors, from_parent, threshold);
  const RawWeights<float>& network = levels[0].weights;
  const Image pixels = image_of(image, network);
  check_logits(logits, network);
  const Shape shape = shape_of(image, network.dimension, 1, most_channels(levels));
  const Output output = output_of(logits, background, labels, values, shape.cells());
  py::gil_scoped_release release;
  return counts_of((half ? octree_forward<Half> : octree_forward<float>)(
      pixels, shape, levels, seed, threshold, sample, output, options));
}

// A stream is used by one thread at a time: the interpreter's lock is let go while it computes.
class OneAtATime {
 public:
  explicit OneAtATime(std::atomic<bool>& busy) : busy_(busy) {
    if (busy_.exchange(true)) refuse("another thread is using this stream");
  }
  ~OneAtATime() { busy_ = false; }
  OneAtATime(const OneAtATime&) = delete;
  OneAtATime& operator=(const OneAtATime&) = delete;

 private:
  std::atomic<bool>& busy_;
};

// An OctreeStream that checks its calls.
class PyStream {
 public:
  PyStream(const std::vector<std::int64_t>& shape, const std::vector<WeightArrays<float>>& weights,
           const std::vector<int>& steps, const std::vector<std::vector<int>>& factors,
           const Maps& from_parent, std::uint64_t seed, std::uint64_t threshold,
           std::uint32_t sample, int logits, bool background, const std::string& kernels, int threads, bool bf16, bool half,
           bool count_non_finite)
      : logits_(logits), background_(background) {
    const auto levels = levels_of(weights, steps, factors, from_parent, threshold);
    network_ = levels[0].weights;
    channels_ = most_channels(levels);
    check_logits(logits, network_);
    if (shape.size() != static_cast<std::size_t>(network_.dimension)) {
      refuse("shape must have " + std::to_string(network_.dimension) + " axes");
    }
    shape_ = shape_of(shape, channels_);
    const Options options = options_of(kernels, threads, "wavefront", bf16, count_non_finite);
    stream_ = make_octree_stream(shape_, levels, seed, threshold, sample, options, half);
  }

  std::int64_t factor() const { return stream_->factor(); }

  void pool(const py::array_t<float>& band, std::int64_t first) {
    const OneAtATime alone(busy_);
    const Range slices = slices_of(band, first);
    if (slices.first != pooled_) refuse("bands must be pooled in order");
    if (slices.end % factor() != 0 && slices.end != shape_.slices()) {
      refuse("bands must end at multiples of the octree's factor");
    }
    const Image image = image_of(band, network_);
    {
      py::gil_scoped_release release;
      stream_->pool(image, slices);
    }
    pooled_ = slices.end;
  }

  void prepare() {
    const OneAtATime alone(busy_);
    if (pooled_ != shape_.slices() || prepared_) refuse("pool the whole image first, once");
    {
      py::gil_scoped_release release;
      stream_->prepare();
    }
    prepared_ = true;
  }

  py::array_t<std::uint8_t> save() const {
    const OneAtATime alone(busy_);
    if (!prepared_) refuse("pool and prepare first");
    py::array_t<std::uint8_t> saved(static_cast<py::ssize_t>(stream_->saved_size()));
    stream_->save(saved.mutable_data());
    return saved;
  }

  void restore(const Array<std::uint8_t>& saved) {
    const OneAtATime alone(busy_);
    if (prepared_ || pooled_ > 0) refuse("the stream has begun with another image");
    if (static_cast<std::size_t>(saved.size()) != stream_->saved_size()) {
      refuse("the coarsest level is that of another image, or of other kernels");
    }
    stream_->restore(saved.data());
    pooled_ = shape_.slices();
    prepared_ = true;
  }

  std::pair<std::int64_t, std::int64_t> begin(std::int64_t first, std::int64_t end) {
    const OneAtATime alone(busy_);
    if (!prepared_) refuse("pool and prepare first");
    if (first < 0 || first >= end || end > shape_.slices()) refuse("no such rows");
    next_ = last_ = 0;  // nothing has begun where memory runs out
    stream_->begin({first, end});
    const Range range = stream_->image_range();
    next_ = range.first;
    last_ = range.end;
    return {range.first, range.end};
  }

  std::int64_t ready(std::int64_t image_end) const {
    const OneAtATime alone(busy_);
    if (last_ == 0) refuse("begin first");
    if (image_end < 0 || image_end > shape_.slices()) refuse("the image has no such rows");
    return stream_->ready(image_end);
  }

  // Of every level, the finest first: cells that are not finite, and cells that were looked at.
  Counts non_finite() const {
    const OneAtATime alone(busy_);
    return counts_of(stream_->non_finite());
  }

  void advance(const py::array_t<float>& band, std::int64_t first,
               std::optional<py::array> labels, std::optional<Array<float>> values) {
    const OneAtATime alone(busy_);
    const Range slices = slices_of(band, first);
    if (last_ == 0 || slices.first != next_ || slices.end > last_) refuse("not the next rows");
    const std::int64_t done = stream_->ready(slices.end) - stream_->ready(slices.first);
    const Output output =
        output_of(logits_, background_, labels, values, done * shape_.slice_cells());
    const Image image = image_of(band, network_);
    const std::int64_t last = last_;
    last_ = 0;  // what fails half-way has to begin again
    {
      py::gil_scoped_release release;
      stream_->advance(image, slices, output);
    }
    next_ = slices.end;
    last_ = last;
  }

 private:
  Range slices_of(const py::array_t<float>& band, std::int64_t first) const {
    image_of(band, network_);  // checks the axes
    const Shape given = shape_of(band, network_.dimension, 1, channels_);
    const bool fits = given.width == shape_.width &&
                      (shape_.dimension == 2 || given.height == shape_.height);
    const std::int64_t rows = given.slices();
    if (!fits || rows < 1 || first < 0 || rows > shape_.slices() - first) {
      refuse("the band does not fit the image");
    }
    return {first, first + rows};
  }

  const int logits_;
  const bool background_;
  RawWeights<float> network_{};  // the finest level's sizes only: the arrays may be gone
  int channels_ = 0;             // of the level that has most
  Shape shape_{};
  std::unique_ptr<OctreeStream> stream_;
  std::int64_t pooled_ = 0, next_ = 0, last_ = 0;
  bool prepared_ = false;
  mutable std::atomic<bool> busy_{false};
};

}  // namespace

namespace octreenca {

void define_octree(py::module_& m) {
  m.def("octree_forward", &py_octree_forward, py::arg("image").noconvert(),
        py::arg("weights").noconvert(), py::arg("steps"), py::arg("factors"),
        py::arg("from_parent").noconvert(), py::arg("seed"), py::arg("threshold"), py::arg("sample"),
        py::arg("logits"), py::arg("background"),
        py::arg("labels").noconvert().none(true), py::arg("values").noconvert().none(true),
        py::arg("kernels"), py::arg("threads"), py::arg("schedule"), py::arg("bf16"),
        py::arg("half"), py::arg("count_non_finite") = true,
        "All levels of one image (channels, axes), to labels or logits. Returns for every level "
        "how many cells are NaN or infinite after its steps, and how many were looked at.");
  py::class_<PyStream>(m, "OctreeStream",
                       "All levels of one image that comes in bands of rows (in 3-D of planes).")
      .def(py::init<const std::vector<std::int64_t>&, const std::vector<WeightArrays<float>>&,
                    const std::vector<int>&, const std::vector<std::vector<int>>&, const Maps&,
                    std::uint64_t, std::uint64_t, std::uint32_t, int, bool, const std::string&, int, bool, bool,
                    bool>(),
           py::arg("shape"), py::arg("weights").noconvert(), py::arg("steps"), py::arg("factors"),
           py::arg("from_parent").noconvert(), py::arg("seed"), py::arg("threshold"), py::arg("sample"), py::arg("logits"),
           py::arg("background"), py::arg("kernels"), py::arg("threads"), py::arg("bf16"),
           py::arg("half"), py::arg("count_non_finite") = true)
      .def_property_readonly("factor", &PyStream::factor,
                             "Rows of the image that a row of the coarsest level covers.")
      .def("pool", &PyStream::pool, py::arg("band").noconvert(), py::arg("first"),
           "First pass: the next rows of the image.")
      .def("prepare", &PyStream::prepare, "The coarsest level, once all is pooled.")
      .def("save", &PyStream::save, "The coarsest level, as bytes for `restore`.")
      .def("restore", &PyStream::restore, py::arg("saved").noconvert(),
           "Take the coarsest level of another stream instead of `pool` and `prepare`.")
      .def("begin", &PyStream::begin, py::arg("first"), py::arg("end"),
           "Rows wanted; returns the rows of the image to hand over.")
      .def("ready", &PyStream::ready, py::arg("image_end"),
           "How far the wanted rows are done with the image's rows below image_end.")
      .def("non_finite", &PyStream::non_finite,
           "For every level, of the cells computed so far that the wanted rows depend on: how many "
           "are NaN or infinite after its steps, and how many were looked at.")
      .def("advance", &PyStream::advance, py::arg("band").noconvert(), py::arg("first"),
           py::arg("labels").noconvert().none(true), py::arg("values").noconvert().none(true),
           "The next rows of the image; fills what becomes ready.");
}

}  // namespace octreenca
