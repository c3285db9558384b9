// The random numbers of maskgil: what `image_seeds` and `image_noise` of maskgil/sampling.py draw on a CPU.

const SIZE = 624, MIDDLE = 397

/** The generator behind `torch.Generator()` on a CPU: MT19937, started with the low 32 bits of a seed. */
export class Mt19937 {
  constructor(seed) {
    this.state = new Uint32Array(SIZE)
    this.state[0] = seed
    for (let i = 1; i < SIZE; i++) {
      const before = this.state[i - 1] ^ (this.state[i - 1] >>> 30)
      this.state[i] = Math.imul(1812433253, before) + i
    }
    this.next = SIZE
  }

  twist() {
    const s = this.state
    for (let i = 0; i < SIZE; i++) {
      const mixed = (s[i] & 0x80000000) | (s[(i + 1) % SIZE] & 0x7fffffff)
      s[i] = s[(i + MIDDLE) % SIZE] ^ (mixed >>> 1) ^ (mixed & 1 ? 0x9908b0df : 0)
    }
    this.next = 0
  }

  /** 32 bits. */
  random() {
    if (this.next === SIZE) this.twist()
    let y = this.state[this.next++]
    y ^= y >>> 11
    y ^= (y << 7) & 0x9d2c5680
    y ^= (y << 15) & 0xefc60000
    return (y ^ (y >>> 18)) >>> 0
  }

  /** What `torch.rand` gives in float32: the low 24 bits, in [0, 1). */
  uniform() { return (this.random() & 0xffffff) / 2 ** 24 }
}

const firstBits = power => { // of the fractions of the roots of the first 64 primes
  const found = []
  for (let n = 2; found.length < 64; n++) {
    let prime = true
    for (let d = 2; d * d <= n; d++) if (n % d === 0) prime = false
    if (prime) found.push((n ** power % 1 * 2 ** 32) >>> 0)
  }
  return found
}
const ROUNDS = firstBits(1 / 3), START = firstBits(1 / 2).slice(0, 8)
const turned = (x, n) => (x >>> n) | (x << (32 - n))

/** SHA-256 of bytes, as eight numbers of 32 bits. `crypto.subtle` is missing where a page is not secure. */
export function sha256(bytes) {
  const padded = new Uint8Array((bytes.length + 72) >> 6 << 6), view = new DataView(padded.buffer)
  padded.set(bytes)
  padded[bytes.length] = 0x80
  view.setUint32(padded.length - 4, bytes.length * 8)
  const hash = Uint32Array.from(START), w = new Uint32Array(64)
  for (let block = 0; block < padded.length; block += 64) {
    for (let i = 0; i < 16; i++) w[i] = view.getUint32(block + 4 * i)
    for (let i = 16; i < 64; i++) {
      const a = w[i - 15], b = w[i - 2]
      const low = turned(a, 7) ^ turned(a, 18) ^ (a >>> 3), high = turned(b, 17) ^ turned(b, 19) ^ (b >>> 10)
      w[i] = w[i - 16] + low + w[i - 7] + high
    }
    let [a, b, c, d, e, f, g, h] = hash
    for (let i = 0; i < 64; i++) {
      const one = h + (turned(e, 6) ^ turned(e, 11) ^ turned(e, 25)) + ((e & f) ^ (~e & g)) + ROUNDS[i] + w[i]
      const two = (turned(a, 2) ^ turned(a, 13) ^ turned(a, 22)) + ((a & b) ^ (a & c) ^ (b & c))
      h = g; g = f; f = e; e = (d + one) | 0; d = c; c = b; b = a; a = (one + two) | 0
    }
    const made = [a, b, c, d, e, f, g, h]
    made.forEach((x, i) => { hash[i] += x })
  }
  return hash
}

/** The low 32 bits of `image_seeds(seed, 1, index)[0]`: of the hash of its parts, each behind its length. */
export function imageSeed(seed, index = 0) {
  const bytes = []
  for (const part of [seed, 'image', index]) {
    const text = new TextEncoder().encode(JSON.stringify(part))
    bytes.push(text.length, 0, 0, 0, 0, 0, 0, 0, ...text)
  }
  return sha256(Uint8Array.from(bytes))[1]
}

const LEAST = Math.fround(1e-7), MOST = Math.fround(1 - 1e-7)

/** `image_noise([seed], (steps, 2, places))`: for each step the numbers that draw codes, and those of the order. */
export function imageNoise(seed, steps, places) {
  const generator = new Mt19937(seed)
  const row = () => Float32Array.from({ length: places }, () => Math.min(Math.max(generator.uniform(), LEAST), MOST))
  return Array.from({ length: steps }, () => ({ codes: row(), order: row() }))
}
