// The page: what is asked, the picture and its steps, and the hole.
import { loadDescription, loadNetworks } from './networks.js'
import { sampleMar } from './sampler.js'

const base = new URL('.', import.meta.url)
const by = id => document.getElementById(`demo-${id}`)
const root = document.getElementById('demo')
const board = by('board'), film = by('film'), time = by('time')
const MB = bytes => (bytes / 1e6).toFixed(1)
const PLAY_MS = 350

let model, networks                  // what demo.json says; the functions of networks.js
let frames = [], shown = 0           // the start and each step; which of them is on the board
let finished = null                  // tokens of the last whole picture, into which a hole is painted
let hole = new Set(), filled = false // places; whether the picture was drawn with them hidden
let cursor = null                    // the place that keys have reached
let drawing = 0, drawings = 0        // the number of the one that goes on, 0 if none; how many there were
let playing = 0                      // a timer

const say = text => { by('said').textContent = text }
const view = () => root.querySelector('[name="demo-view"]:checked').value
const label = () => Number(root.querySelector('[name="demo-class"]:checked').value)
const pixels = () => model.grid.map(side => side * model.downsample)

function asked() {
  const seed = Math.min(Math.max(Math.trunc(Number(by('seed').value)) || 0, 0), 999999999)
  by('seed').value = seed
  return {
    seed, steps: Number(by('steps').value), cfg: Number(by('cfg').value), temperature: Number(by('temperature').value),
    order: by('order').value, choiceTemperature: Number(by('noise').value),
  }
}

function fail(error) {
  root.dataset.state = 'failed'
  by('message').textContent = `It does not work here: ${error.message}.`
  by('draw').disabled = true
}

// ---- pictures

async function painted(codes) { // a canvas of the picture's own size
  const { data } = await networks.paint([codes]), [height, width] = pixels()
  const canvas = Object.assign(document.createElement('canvas'), { width, height })
  const image = new ImageData(width, height), area = width * height
  for (let i = 0; i < area; i++) {
    for (let c = 0; c < 3; c++) image.data[4 * i + c] = Math.round((data[c * area + i] + 1) * 127.5)
    image.data[4 * i + 3] = 255
  }
  canvas.getContext('2d').putImageData(image, 0, 0)
  return canvas
}

const colour = name => getComputedStyle(root).getPropertyValue(name).trim()

/** A frame on a canvas whose squares are `side` wide; `details` adds what only the board has room for. */
function render(canvas, frame, side, details) {
  const [rows, columns] = model.grid, context = canvas.getContext('2d')
  canvas.width = columns * side
  canvas.height = rows * side
  context.imageSmoothingEnabled = false
  const at = place => [place % columns * side, Math.floor(place / columns) * side]
  context.fillStyle = '#fff'
  context.fillRect(0, 0, canvas.width, canvas.height)
  if (frame.picture) context.drawImage(frame.picture, 0, 0, canvas.width, canvas.height)
  const mode = details ? view() : 'hidden', gap = side > 12 ? side / 48 : 0
  const square = (place, style, inset = gap) => {
    const [x, y] = at(place)
    context.fillStyle = style
    context.fillRect(x + inset, y + inset, side - 2 * inset, side - 2 * inset)
  }
  frame.tokens.forEach((code, place) => {
    if (code !== model.codes) return
    if (mode === 'hidden' || !frame.picture) square(place, '#fff', 0), square(place, '#dcd6e2')
    else if (mode === 'guessed') square(place, 'rgb(244 240 248 / 62%)', 0)
  })
  if (!details) return
  if (mode === 'confidence' && frame.confidence) drawConfidence(context, frame, at, side)
  const outline = (place, style, width, dash = []) => {
    const [x, y] = at(place)
    Object.assign(context, { strokeStyle: style, lineWidth: width })
    context.setLineDash(dash)
    context.strokeRect(x + width / 2, y + width / 2, side - width, side - width)
  }
  if (shown && shown < frames.length - 1) for (const place of frame.kept) outline(place, '#a03ac4', side / 18)
  if (frame === frames.at(-1) && !drawing) {
    if (filled) drawEdge(context, at, side)
    else for (const place of hole) drawHole(context, at(place), side)
  }
  if (cursor !== null && document.activeElement === board) outline(cursor, '#111', side / 14, [side / 8, side / 12])
}

function drawConfidence(context, frame, at, side) {
  const font = `600 ${side * .3}px system-ui, sans-serif`
  Object.assign(context, { font, textAlign: 'center', textBaseline: 'middle' })
  frame.confidence.forEach((p, place) => {
    if (Number.isNaN(p)) return
    const [x, y] = at(place)
    context.fillStyle = `hsl(283 62% ${96 - 64 * p}%)`
    context.fillRect(x, y, side, side)
    context.fillStyle = p > .45 ? '#fff' : '#2b0d38'
    context.fillText(Math.round(100 * p), x + side / 2, y + side / 2 + side * .02)
  })
}

function drawHole(context, [x, y], side) {
  context.save()
  context.beginPath()
  context.rect(x, y, side, side)
  context.clip()
  context.fillStyle = 'rgb(160 58 196 / 30%)'
  context.fillRect(x, y, side, side)
  Object.assign(context, { strokeStyle: 'rgb(91 26 117 / 75%)', lineWidth: side / 28 })
  context.beginPath()
  for (let d = -side; d < side; d += side / 5) {
    context.moveTo(x + d, y + side)
    context.lineTo(x + d + side, y)
  }
  context.stroke()
  context.restore()
}

function drawEdge(context, at, side) { // around what was filled
  const across = model.grid[1]
  Object.assign(context, { strokeStyle: 'rgb(91 26 117 / 80%)', lineWidth: side / 24 })
  context.setLineDash([side / 8, side / 12])
  context.beginPath()
  for (const place of hole) {
    const [x, y] = at(place)
    const edge = (neighbour, ax, ay, bx, by) => {
      if (hole.has(neighbour)) return
      context.moveTo(x + ax * side, y + ay * side)
      context.lineTo(x + bx * side, y + by * side)
    }
    edge(place % across ? place - 1 : -1, 0, 0, 0, 1)
    edge((place + 1) % across ? place + 1 : -1, 1, 0, 1, 1)
    edge(place - across, 0, 0, 1, 0)
    edge(place + across, 0, 1, 1, 1)
  }
  context.stroke()
}

const LEGENDS = {
  hidden: 'Outlined: settled in this step.',
  guessed: 'Veiled: what the model would put there now, before it is hidden again.',
  confidence: 'Percent that the model gives the code it drew, for every square that was hidden before this step.',
}

function refresh() {
  if (!frames.length) return
  const side = Math.max(8, Math.round(board.clientWidth * devicePixelRatio / model.grid[1]))
  render(board, frames[shown], side, true)
  const steps = frames.length - 1
  time.value = shown
  by('step').textContent = shown ? `step ${shown} of ${time.max}` : 'start'
  by('legend').textContent = shown && shown < steps || view() === 'confidence' ? LEGENDS[view()] : ''
  film.querySelectorAll('button').forEach((button, i) => {
    if (i + 1 === shown) button.setAttribute('aria-current', 'step')
    else button.removeAttribute('aria-current')
  })
  const whole = finished && !drawing
  by('fill').disabled = !whole || !hole.size
  by('fill').textContent = filled ? 'Fill it again' : 'Fill the hole'
  by('clear').disabled = !hole.size
  by('play').disabled = !whole || !steps
  time.disabled = !steps
  root.toggleAttribute('data-ready', Boolean(whole))
  root.toggleAttribute('data-playing', Boolean(playing))
  by('play').setAttribute('aria-label', playing ? 'Pause' : 'Play the steps')
}

function show(frame) {
  shown = Math.min(Math.max(frame, 0), frames.length - 1)
  refresh()
}

function addFrame(frame) {
  frames.push(frame)
  if (frames.length === 1) return
  const step = frames.length - 1, button = document.createElement('button'), canvas = document.createElement('canvas')
  Object.assign(button, { type: 'button', title: `step ${step}`, onclick: () => { stop(); show(step) } })
  button.setAttribute('aria-label', `Step ${step}`)
  render(canvas, frame, 8, false)
  button.append(canvas)
  film.append(button)
}

// ---- drawing

const pause = () => new Promise(done => setTimeout(done)) // so that the page can draw itself and answer

async function draw(start = null) {
  stop()
  const number = drawing = ++drawings, options = asked(), of = label(), before = finished
  if (!start) hole.clear()
  filled = Boolean(start)
  finished = null
  const [h, w] = model.grid, empty = new Int32Array(h * w).fill(model.codes)
  const tokens = start ?? empty, hidden = tokens.filter(code => code === model.codes).length
  by('draw').textContent = 'Stop'
  by('python').textContent = python(of, options, start)
  say('Drawing')
  try {
    frames = []
    film.replaceChildren()
    time.max = Math.min(options.steps, hidden)
    addFrame({ tokens, kept: [], picture: start && await painted(before) }) // its hole is grey
    show(0)
    const places = { classes: model.classes.length, codes: model.codes, grid: model.grid, tokens }
    for await (const step of sampleMar(networks.ask, of, { ...places, ...options })) {
      const picture = await painted(step.candidates)
      if (drawing !== number) return
      addFrame({ ...step, picture })
      show(frames.length - 1)
      await pause()
      if (drawing !== number) return
    }
    finished = frames.at(-1).tokens
    say(`${model.classes[of]}, drawn in ${frames.length - 1} steps`)
  } catch (error) { fail(error) }
  end()
}

function end() {
  drawing = 0
  by('draw').textContent = 'Draw another'
  refresh()
}

function abort() { // what was drawn so far stays to be looked at
  end()
  say('Stopped')
}

function fill() {
  if (!finished || drawing || !hole.size) return
  by('seed').value = asked().seed + 1 // or it would be drawn as before
  draw(finished.map((code, place) => hole.has(place) ? model.codes : code))
}

function python(of, { seed, steps, cfg, temperature, order, choiceTemperature }, start) {
  const given = [`labels=['${model.classes[of]}']`, `seed=${seed}`, `steps=${steps}`, `cfg=${cfg}`, `order='${order}'`,
    `temperature=${temperature}`, `choice_temperature=${choiceTemperature}`, "dtype='float32'"]
  const lines = ['from maskgil.web import web_pipeline', 'pipe = web_pipeline()']
  if (start) {
    const [h, w] = model.grid
    const rows = Array.from({ length: h }, (_, i) => [...start.slice(i * w, (i + 1) * w)].join(', '))
    const codes = rows.join('],\n                        [')
    lines.push('import torch', `start = torch.tensor([[[${codes}]]]) # ${model.codes} is the hole`)
    given.push('start=start')
  }
  const half = Math.ceil(given.length / 2)
  const [one, other] = [given.slice(0, half), given.slice(half)].map(part => part.join(', '))
  lines.push(`tokens = pipe.draw(${one},`, `                   ${other})`, 'picture, = pipe.pictures(tokens)')
  return lines.join('\n')
}

// ---- steps

function stop() {
  clearInterval(playing)
  playing = 0
}

function play() {
  if (playing) { stop(); return refresh() }
  show(shown === frames.length - 1 ? 0 : shown)
  playing = setInterval(() => {
    if (shown >= frames.length - 1) { stop(); return refresh() }
    show(shown + 1)
  }, Math.max(120, Math.min(PLAY_MS, 5000 / frames.length)))
  refresh()
}

// ---- the hole

const columns = () => model.grid[1], count = () => model.grid[0] * model.grid[1]
let opens = true, painting = false

function touched(place) {
  if (opens) hole.add(place)
  else hole.delete(place)
  filled = false
  show(frames.length - 1)
}

function placeAt(event) {
  const box = board.getBoundingClientRect(), [rows, across] = model.grid
  const x = Math.floor((event.clientX - box.left) / box.width * across)
  const y = Math.floor((event.clientY - box.top) / box.height * rows)
  return x < 0 || y < 0 || x >= across || y >= rows ? null : y * across + x
}

function paintAt(event) {
  const place = placeAt(event)
  if (place !== null) touched(place)
}

board.addEventListener('pointerdown', event => {
  if (!finished || drawing || event.button) return
  stop()
  painting = true
  cursor = null
  opens = !hole.has(placeAt(event))
  board.setPointerCapture(event.pointerId)
  paintAt(event)
})
board.addEventListener('pointermove', event => {
  if (!painting) return
  const between = event.getCoalescedEvents?.() ?? []
  for (const moved of between.length ? between : [event]) paintAt(moved)
})
for (const kind of ['pointerup', 'pointercancel']) board.addEventListener(kind, () => { painting = false })

const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }
board.addEventListener('keydown', event => {
  if (!finished || drawing || event.ctrlKey || event.metaKey || event.altKey) return
  const move = MOVES[event.key]
  if (move) {
    if (cursor === null) cursor = 0
    else {
      const x = cursor % columns() + move[0], y = Math.floor(cursor / columns()) + move[1]
      cursor = Math.min(Math.max(y, 0), model.grid[0] - 1) * columns() + Math.min(Math.max(x, 0), columns() - 1)
    }
  } else if (event.key === ' ' && cursor !== null) {
    opens = !hole.has(cursor)
    touched(cursor)
  } else if (event.key === 'Enter') fill()
  else if (event.key === 'Escape') by('clear').click()
  else return
  event.preventDefault()
  if (cursor !== null) {
    const where = `row ${Math.floor(cursor / columns()) + 1}, column ${cursor % columns() + 1}`
    say(`${where}${hole.has(cursor) ? ', in the hole' : ''}; ${hole.size} of ${count()} squares in the hole`)
  }
  refresh()
})
for (const kind of ['focus', 'blur']) board.addEventListener(kind, refresh)

// ---- classes

const calm = matchMedia('(prefers-reduced-motion: reduce)')

function choose(of) {
  root.querySelectorAll('[name="demo-class"]')[of].checked = true
  if (!networks) return
  board.parentElement.scrollIntoView({ block: 'nearest', behavior: calm.matches ? 'auto' : 'smooth' })
  draw()
}

const FIRST_CLASS = 1 // a person: most of them can be recognised
function listClasses() {
  by('classes').replaceChildren(...model.classes.map((name, i) => {
    const [label, input, span] = ['label', 'input', 'span'].map(tag => document.createElement(tag))
    Object.assign(input, { type: 'radio', name: 'demo-class', value: i, checked: i === FIRST_CLASS })
    input.addEventListener('change', () => choose(i))
    span.textContent = name
    label.append(input, span)
    return label
  }))
}

const MOST_FOUND = 6
function search() {
  const wanted = by('search').value.trim().toLowerCase(), list = by('found')
  list.hidden = !wanted
  if (!wanted) return
  const found = []
  model.classes.forEach((name, of) => {
    if (name.toLowerCase().includes(wanted)) found.push([-1, name, of])
    for (const emoji of model.names[of].filter(emoji => emoji.includes(wanted))) {
      found.push([emoji.indexOf(wanted) ? 1 : 0, emoji, of])
    }
  })
  found.sort((a, b) => a[0] - b[0] || a[1].length - b[1].length)
  list.replaceChildren(...found.slice(0, MOST_FOUND).map(([, text, of]) => {
    const [item, button, small] = ['li', 'button', 'small'].map(tag => document.createElement(tag))
    button.type = 'button'
    button.textContent = text
    small.textContent = text === model.classes[of] ? 'class' : model.classes[of]
    button.append(small)
    button.addEventListener('click', () => { closeSearch(); choose(of) })
    item.append(button)
    return item
  }))
  if (!found.length) {
    const item = document.createElement('li'), text = document.createElement('p')
    text.textContent = 'No emoji has that in its name.'
    item.append(text)
    list.append(item)
  }
}

function closeSearch() {
  by('search').value = ''
  by('found').hidden = true
}

function moveInSearch(event) {
  const buttons = [...by('found').querySelectorAll('button')], at = buttons.indexOf(document.activeElement)
  if (event.key === 'Escape') closeSearch(), by('search').focus()
  else if (event.key === 'Enter' && at < 0) buttons[0]?.click()
  else if (event.key === 'ArrowDown') buttons[Math.min(at + 1, buttons.length - 1)]?.focus()
  else if (event.key === 'ArrowUp') (buttons[at - 1] ?? by('search')).focus()
  else return
  event.preventDefault()
}

// ---- controls

function readout(input) {
  const output = root.querySelector(`output[for="${input.id}"]`)
  if (output) output.textContent = input.value
  by('noise').disabled = by('order').value !== 'confidence'
}

by('controls').addEventListener('submit', event => {
  event.preventDefault()
  if (!networks) return
  if (drawing) return abort()
  by('seed').value = asked().seed + 1
  draw()
})
by('controls').addEventListener('input', event => readout(event.target))
by('controls').addEventListener('change', event => { // what is asked has changed; a hole waits to be filled with it
  if (networks && !hole.size && event.target.closest('.demo-rows')) draw()
})
by('fill').addEventListener('click', fill)
by('clear').addEventListener('click', () => { hole.clear(); filled = false; refresh() })
by('play').addEventListener('click', play)
time.addEventListener('input', () => { stop(); show(Number(time.value)) })
by('search').addEventListener('input', search)
root.querySelector('.demo-search').addEventListener('keydown', moveInSearch)
root.querySelector('.demo-search').addEventListener('focusout', event => {
  if (!event.currentTarget.contains(event.relatedTarget)) by('found').hidden = true
})
by('search').addEventListener('focus', search)
root.querySelectorAll('[name="demo-view"]').forEach(input => input.addEventListener('change', refresh))
new ResizeObserver(refresh).observe(board)

async function begin() {
  try {
    model = await loadDescription(base)
    listClasses()
    for (const [name, value] of Object.entries(model.defaults)) if (by(name)) by(name).value = value
    root.querySelectorAll('.demo-rows :is(input, select)').forEach(readout)
    networks = await loadNetworks(model, base, (bytes, all) => {
      if (root.dataset.state === 'failed') return // another file did not come
      by('progress').value = bytes / all
      by('message').textContent = bytes < all ? `Loading ${MB(bytes)} of ${MB(all)} MB` : 'Starting'
    })
  } catch (error) { return fail(error) }
  root.dataset.state = 'ready'
  by('draw').disabled = false
  await draw()
}
begin()
