// Masked decoding, step by step: `sample_mar` of maskgil/sampling.py for one image, with the same names.
import { imageNoise, imageSeed } from './random.js'

const f32 = Math.fround
const sum = numbers => numbers.reduce((total, x) => total + x, 0)

const halfToEven = x => { // as torch rounds
  const low = Math.floor(x), rest = x - low
  return rest < .5 || (rest === .5 && low % 2 === 0) ? low : low + 1
}

/** Tokens to reveal at each step: at least one, rounded from the schedule arccos. */
export function unmaskPlan(tokens, steps) {
  if (steps >= tokens) return Array.from({ length: steps }, (_, t) => t < tokens ? 1 : 0)
  const r = t => t < steps / 2 ? f32(1 - f32(f32(1 / (steps - 1)) * t)) : f32(f32(1 / (steps - 1)) * (steps - 1 - t))
  const arccos = t => f32(f32(Math.acos(r(t))) / f32(Math.PI / 2))
  const weights = steps > 1 ? Array.from({ length: steps }, (_, t) => arccos(t)) : [1]
  const total = f32(sum(weights))
  const counts = weights.map(weight => Math.max(1, halfToEven(f32(f32(weight / total) * tokens))))
  const last = steps - 1
  counts[last] += tokens - sum(counts)
  while (counts[last] < 1) { // many steps of at least one token can overdraw: the largest gives back
    const others = counts.slice(0, last)
    counts[others.indexOf(Math.max(...others))]--
    counts[last]++
  }
  return counts
}

/** The digits of `index` in a base, mirrored at the point. */
export function halton(index, base) {
  let value = 0, share = 1
  while (index) {
    share /= base
    value += share * (index % base)
    index = Math.floor(index / base)
  }
  return value
}

/** When each token's turn comes: the order in which a Halton sequence in bases 2 and 3 first visits the cells. */
export function haltonRanks([h, w]) {
  const ranks = new Map()
  for (let point = 1; ranks.size < h * w; point++) {
    const cell = Math.floor(halton(point, 2) * h) * w + Math.floor(halton(point, 3) * w)
    if (!ranks.has(cell)) ranks.set(cell, ranks.size)
  }
  return Array.from({ length: h * w }, (_, cell) => ranks.get(cell))
}

/** Log-probability, noise, place, ranks -> score; the highest are kept. */
export const ORDERS = {
  confidence: (logP, noise) => f32(logP + noise),
  halton: (logP, noise, place, ranks) => -ranks[place],
  random: (logP, noise) => noise,
  raster: (logP, noise, place) => -place,
}

/** Logits of one token -> log-probabilities. */
export function logSoftmax(logits, temperature = 1) {
  let most = -Infinity, total = 0
  for (const x of logits) most = Math.max(most, x)
  const scaled = Float64Array.from(logits, x => (x - most) / temperature)
  for (const x of scaled) total += Math.exp(x)
  return scaled.map(x => x - Math.log(total))
}

/** The code at which the cumulative probability passes `u`. */
export function drawCode(logP, u) {
  const cumulative = new Float64Array(logP.length)
  let total = 0
  for (let i = 0; i < logP.length; i++) cumulative[i] = total += Math.exp(logP[i])
  const found = cumulative.findIndex(x => x > u * total)
  return found < 0 ? logP.length - 1 : found
}

const gumbel = u => f32(-Math.log(f32(-Math.log(u))))

/** l_u + s (l_c - l_u), or l_c alone where s is 1. */
async function guidedLogits(ask, tokens, label, classes, codes, scale) {
  if (scale === 1) return ask([tokens], [label])
  const both = await ask([tokens, tokens], [label, classes]), half = tokens.length * codes
  return Float32Array.from({ length: half }, (_, i) => both[half + i] + scale * (both[i] - both[half + i]))
}

/**
 * Draw all hidden tokens. After each step it gives `{ step, tokens, candidates, confidence, kept }`: the tokens so far,
 * what the model would put in the hidden places, how probable it thinks that is (NaN where nothing was hidden), and
 * which places were settled. `ask(images, labels)` is the network: its logits, one image after the other.
 */
export async function* sampleMar(ask, label, {
  classes, codes, grid, steps = 8, cfg = 3, order = 'confidence', choiceTemperature = 4.5, temperature = 1,
  tokens = null, seed = 0, first = 0,
}) {
  const places = grid[0] * grid[1], score = ORDERS[order], ranks = haltonRanks(grid)
  const x = tokens ? Int32Array.from(tokens) : new Int32Array(places).fill(codes)
  const plan = unmaskPlan(x.filter(code => code === codes).length, steps)
  const noise = imageNoise(imageSeed(seed, first), steps, places)
  for (let t = 0; t < steps; t++) {
    if (!plan[t]) continue
    const hidden = [...x.keys()].filter(place => x[place] === codes)
    // 1. what the model believes about the hidden tokens
    const logits = await guidedLogits(ask, x, label, classes, codes, cfg)
    const candidates = Int32Array.from(x), confidence = new Float32Array(places).fill(NaN), scores = []
    const fading = steps > 1 ? 1 - t / (steps - 1) : 0
    for (const place of hidden) {
      const logP = logSoftmax(logits.subarray(place * codes, (place + 1) * codes), temperature)
      // 2. a candidate for each of them
      const code = candidates[place] = drawCode(logP, noise[t].codes[place])
      // 3. how sure it is of each, with noise that fades
      confidence[place] = Math.exp(logP[code])
      const added = f32(f32(choiceTemperature * fading) * gumbel(noise[t].order[place]))
      scores.push([score(f32(logP[code]), added, place, ranks), place])
    }
    // 4. keep the surest, hide the rest again; ties go to the earlier place
    const kept = scores.sort((a, b) => b[0] - a[0]).slice(0, plan[t]).map(([, place]) => place)
    for (const place of kept) x[place] = candidates[place]
    yield { step: t, tokens: Int32Array.from(x), candidates, confidence, kept }
  }
}
