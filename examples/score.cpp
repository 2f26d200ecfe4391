// Score images with an exported detector in C++ (onnxruntime 1.17 or later):
//   c++ -std=c++17 score.cpp -I include -L lib -lonnxruntime -o score && ./score model.onnx images.bin N C H W
// images.bin holds the pixels as bytes: N images, each channel by channel, row by row, intensities 0 to 255.
// The order of channels is in the file's metadata (channel_order), as are score, unit, threshold and its rate.

#include <onnxruntime_cxx_api.h>

#include <cstdint>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <vector>

int main(int count, char** arguments) try {
  if (count != 7) return std::fprintf(stderr, "usage: score MODEL IMAGES N C H W\n"), 2;
  std::ifstream file(arguments[2], std::ios::binary);
  std::vector<uint8_t> pixels((std::istreambuf_iterator<char>(file)), {});
  std::vector<int64_t> shape;
  for (int i = 3; i < 7; i++) shape.push_back(std::stoll(arguments[i]));

  Ort::Env environment;
  Ort::Session session(environment, arguments[1], Ort::SessionOptions());
  auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  auto images = Ort::Value::CreateTensor<uint8_t>(memory, pixels.data(), pixels.size(), shape.data(), shape.size());
  const char* inputs[] = {"images"};
  const char* outputs[] = {"score", "p_value", "is_outlier"};
  auto found = session.Run(Ort::RunOptions(), inputs, &images, 1, outputs, 3);

  for (int64_t i = 0; i < shape[0]; i++)
    std::printf("%lld %.9g %.17g %s\n", static_cast<long long>(i), found[0].GetTensorData<float>()[i],
                found[1].GetTensorData<double>()[i], found[2].GetTensorData<bool>()[i] ? "outlier" : "inlier");
} catch (const Ort::Exception& error) {
  return std::fprintf(stderr, "%s\n", error.what()), 1;
}
