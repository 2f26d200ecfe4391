// Score images with an exported detector in Node.js: npm install onnxruntime-node
//   node score.js model.onnx images.bin N C H W
// images.bin holds the pixels as bytes: N images, each channel by channel, row by row, intensities 0 to 255.
// The order of channels is in the file's metadata (channel_order), as are score, unit, threshold and its rate.

const { readFileSync } = require("node:fs");
const ort = require("onnxruntime-node");

async function main([model, file, ...shape]) {
  const session = await ort.InferenceSession.create(model);
  const images = new ort.Tensor("uint8", new Uint8Array(readFileSync(file)), shape.map(Number));
  const { score, p_value, is_outlier } = await session.run({ images });
  for (let index = 0; index < score.data.length; index++) {
    const verdict = is_outlier.data[index] ? "outlier" : "inlier";
    console.log(`${index} ${score.data[index]} ${p_value.data[index]} ${verdict}`);
  }
}

main(process.argv.slice(2)).catch((error) => {
  console.error(error.message);
  process.exit(1);
});
