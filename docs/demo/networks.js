// The networks, run by onnxruntime-web: fetched from beside this page, unpacked by the browser, kept in memory.

/** All bytes of a response; `onBytes` is told of each piece. */
async function bytesOf(response, onBytes) {
  const reader = response.body.getReader(), pieces = []
  for (;;) {
    const { done, value } = await reader.read()
    if (done) break
    pieces.push(value)
    onBytes(value.length)
  }
  return new Uint8Array(await new Blob(pieces).arrayBuffer())
}

const isGzip = bytes => bytes[0] === 0x1f && bytes[1] === 0x8b // a server may have unpacked it on the way

async function unpacked(bytes, halves) {
  if (isGzip(bytes)) {
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream('gzip'))
    bytes = new Uint8Array(await new Response(stream).arrayBuffer())
  }
  if (!halves) return bytes
  const whole = new Uint8Array(bytes.length), even = Math.ceil(bytes.length / 2) // even places first, then odd ones
  for (let i = 0; i < even; i++) whole[2 * i] = bytes[i]
  for (let i = even; i < bytes.length; i++) whole[2 * (i - even) + 1] = bytes[i]
  return whole
}

async function fetched(address) {
  let response
  try { response = await fetch(address) } catch { throw new Error(`${address.pathname} cannot be reached`) }
  if (!response.ok) throw new Error(`${address.pathname} is not there (${response.status})`)
  return response
}

/** What demo.json says of the model. */
export async function loadDescription(base) { return (await fetched(new URL('demo.json', base))).json() }

/** The two networks as functions. `onProgress` gets the bytes so far and all of them. */
export async function loadNetworks(description, base, onProgress = () => {}) {
  const { files } = description
  if (!files.runtime) throw new Error('this site was built without onnxruntime-web: npm was not there to bring it')
  const all = Object.values(files).reduce((total, file) => total + file.bytes, 0)
  let soFar = 0
  const load = async file => {
    const response = await fetched(new URL(file.file, base))
    return unpacked(await bytesOf(response, n => onProgress(soFar += n, all)), file.halves)
  }
  const [runtime, transformer, decoder] = await Promise.all([files.runtime, files.transformer, files.decoder].map(load))
  const ort = await import(new URL('ort.mjs', base))
  ort.env.wasm.numThreads = 1 // more need headers of a server
  ort.env.wasm.wasmPaths = { mjs: new URL('ort-wasm.mjs', base).href }
  ort.env.wasm.wasmBinary = runtime.buffer
  const session = bytes => ort.InferenceSession.create(bytes, { executionProviders: ['wasm'] })
  const network = await session(transformer), painter = await session(decoder)
  const [h, w] = description.grid
  let last = Promise.resolve() // a session takes one call at a time
  const run = (session, inputs) => last = last.catch(() => {}).then(() => session.run(inputs))
  const whole = (numbers, dims) => new ort.Tensor('int32', Int32Array.from(numbers), dims)
  const joined = (images, ...dims) => whole(images.flatMap(image => [...image]), [images.length, ...dims])
  return {
    /** Logits of images of tokens, one image after the other. */
    async ask(images, labels) {
      const inputs = { tokens: joined(images, h * w), labels: whole(labels, [labels.length]) }
      const { logits } = await run(network, inputs)
      return logits.data
    },
    /** Images of codes as pixels in [-1, 1], (b 3 H W). */
    async paint(images) {
      const { image } = await run(painter, { codes: joined(images, h, w) })
      return { data: image.data, shape: image.dims }
    },
  }
}
