// Score images with an exported detector in a browser, with onnxruntime-web (its `ort` must be loaded).
// The page needs nothing but the file: pixels never leave the browser.

/** Score images: `model` is the file in base64, `pixels` are intensities 0 to 255, channel by channel, row by row. */
globalThis.score = async function score(model, pixels, shape) {
  ort.env.wasm.wasmPaths = new URL(".", document.baseURI).href;
  ort.env.wasm.numThreads = 1;
  const bytes = Uint8Array.from(atob(model), (letter) => letter.charCodeAt(0));
  const session = await ort.InferenceSession.create(bytes, { executionProviders: ["wasm"] });
  const images = new ort.Tensor("uint8", Uint8Array.from(pixels), shape); // N x C x H x W
  const { score, p_value, is_outlier } = await session.run({ images });
  return {
    score: Array.from(score.data), // larger: less like the training data
    p_value: Array.from(p_value.data), // share of held-out inliers that score at least as high
    is_outlier: Array.from(is_outlier.data, Boolean),
  };
};
