// What ids of codecs that are not text look like: notes that play, pixels, residues.
// A view has `add(text, id)`, told each chunk's text and each id, and `done(rendered)`.

const TICKS = 480; // of a quarter note
const FRAMES = { quarter: 1, "8th": 2, "16th": 4 }; // of a chorale, to a quarter note
const STEPS = { C: 0, D: 2, E: 4, F: 5, G: 7, A: 9, B: 11 };
const HUES = [18, 205, 150, 285, 48, 330]; // of tracks
const CLASSES = {
  hydrophobic: "AVILMC", aromatic: "FWYH", polar: "STNQ", positive: "KR", negative: "DE", small: "GP",
};
const BASES = { hydrophobic: "A", positive: "C", polar: "G", negative: "TU" };

export function view(model, figure) {
  figure.replaceChildren();
  const make = { music: roll, image: picture }[model.codec];
  figure.hidden = !make;
  return make ? make(model, figure) : { add() {}, done() {} };
}

// ---- proteins ----------------------------------------------------------------------------------

export function classesOf(model) {
  if (model.codec !== "protein") return null;
  return ["dna", "rna"].includes(model.codec_options.alphabet) ? BASES : CLASSES;
}

// What a class is called: bases are classes of their own.
export const labelOf = (name, members) => (Object.values(BASES).includes(members) ? members : name);

export function classOf(classes, letter) {
  return Object.keys(classes).find((name) => classes[name].includes(letter)) ?? "other";
}

// ---- images ------------------------------------------------------------------------------------

function picture(model, figure) {
  const how = model.codec_options;
  const canvas = element("canvas", "picture");
  [canvas.width, canvas.height] = [how.width || how.size || 16, how.height || how.size || 16];
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", "The picture so far");
  const pen = canvas.getContext("2d");
  const paint = pen.createImageData(canvas.width, canvas.height);
  const values = pixelsOf(how), caption = element("figcaption");
  figure.append(canvas, caption);
  let place = 0;
  const dot = (colour) => {
    if (place < canvas.width * canvas.height) paint.data.set([...colour, 255], 4 * place++);
  };
  return {
    add(text, ids) {
      for (const id of ids) values(id).forEach(dot);
      pen.putImageData(paint, 0, 0);
    },
    done: (rendered) => offer(caption, rendered, { "image/png": "png" }),
  };
}

// From an id to the colours that it completes, by the codec's options.
function pixelsOf(how) {
  if (how.mode === "binary") {
    const pack = how.pack ?? 1;
    return (id) => id < 2 ** pack
      ? Array.from({ length: pack }, (_, i) => Array(3).fill((id >> (pack - 1 - i)) & 1 ? 255 : 0)) : [];
  }
  if (how.mode === "palette") {
    const colours = how.palette.split("-").map((hex) => [0, 2, 4].map((i) => parseInt(hex.slice(i, i + 2), 16)));
    return (id) => colours.slice(id, id + 1);
  }
  const levels = how.levels ?? 256;
  const shade = (id) => Math.floor(((id % levels) * 255 + ((levels - 1) >> 1)) / (levels - 1));
  if (how.mode === "grey") return (id) => (id < levels ? [Array(3).fill(shade(id))] : []);
  const order = how.channels ?? "rgb";
  let begun = [];
  return (id) => {
    if (id >= 3 * levels) return [];
    begun.push(shade(id));
    if (begun.length < 3) return [];
    const whole = [..."rgb"].map((channel) => begun[order.indexOf(channel)]);
    begun = [];
    return [whole];
  };
}

// ---- music -------------------------------------------------------------------------------------

function roll(model, figure) {
  const canvas = element("canvas", "roll"), caption = element("figcaption");
  canvas.setAttribute("role", "img");
  const button = element("button", "play", "Play");
  button.type = "button";
  button.disabled = true;
  figure.append(canvas, caption);
  caption.append(button);
  const score = { notes: [], tempo: 120, drums: new Set() };
  const read = model.codec_options.form === "chorale" ? frames(model.codec_options.grid) : lines;
  let rest = "";
  const draw = (at) => paintRoll(canvas, score, at);
  const player = playing(button, score, draw);
  addEventListener("resize", () => canvas.isConnected && draw());
  draw();
  return {
    add(text) {
      const whole = (rest + text).split("\n");
      rest = whole.pop();
      whole.forEach((line) => read(score, line));
      button.disabled = !score.notes.length;
      canvas.setAttribute("aria-label", `Piano roll of ${score.notes.length} notes`);
      draw();
    },
    done: (rendered) => offer(caption, rendered, { "audio/midi": "mid" }),
    stop: () => player.stop(),
  };
}

// A line of a score: a tempo, a track or a note.
function lines(score, line) {
  const tempo = /^\d+ tempo (\d+(?:\.\d+)?)/.exec(line), drums = /^\d+ track (\d+) drums/.exec(line);
  const note = /^(\d+) ([A-G][#b]?-?\d+|\d+) (\d+)(?: v(\d+))?(?: t(\d+))?/.exec(line);
  if (tempo) score.tempo = Number(tempo[1]);
  if (drums) score.drums.add(Number(drums[1]));
  if (note && !/ (?:meter|track) /.test(line)) {
    const [, start, name, length, loud = 83, track = 0] = note;
    score.notes.push({ start: +start, pitch: pitchOf(name), length: +length, loud: +loud, track: +track });
  }
}

// Lines of a chorale: four voices a frame; equal pitches that follow each other are one note.
function frames(grid) {
  const length = TICKS / FRAMES[grid ?? "quarter"], held = [];
  let start = 0;
  return (score, line) => {
    score.tempo = 80;
    line.trim().split(/\s+/).forEach((name, track) => {
      const pitch = /^[A-G]/.test(name) ? pitchOf(name) : null, last = held[track];
      if (last && last.pitch === pitch && last.start + last.length === start) last.length += length;
      else if (pitch !== null) score.notes.push((held[track] = { start, pitch, length, loud: 80, track }));
    });
    start += length;
  };
}

function pitchOf(name) {
  const [, letter, sign, octave] = /^([A-G])([#b]?)(-?\d+)$/.exec(name) ?? [];
  if (!letter) return Number(name);
  return STEPS[letter] + (sign === "#") - (sign === "b") + 12 * (Number(octave) + 1);
}

function paintRoll(canvas, { notes }, at) {
  const dense = devicePixelRatio || 1, wide = canvas.clientWidth || 600, high = canvas.clientHeight || 240;
  [canvas.width, canvas.height] = [wide * dense, high * dense];
  const pen = canvas.getContext("2d"), style = getComputedStyle(canvas);
  pen.scale(dense, dense);
  const end = Math.max(4 * TICKS, ...notes.map((n) => n.start + n.length));
  const low = Math.min(58, ...notes.map((n) => n.pitch)) - 2, top = Math.max(74, ...notes.map((n) => n.pitch)) + 2;
  const row = high / (top - low + 1), x = (tick) => (tick / end) * wide;
  pen.fillStyle = pen.strokeStyle = style.getPropertyValue("--line");
  for (let tick = 0; tick < end; tick += TICKS) pen.fillRect(x(tick), 0, tick % (4 * TICKS) ? 0.5 : 1.5, high);
  for (let pitch = Math.ceil(low / 12) * 12; pitch <= top; pitch += 12) pen.fillRect(0, (top - pitch + 1) * row, wide, 0.5);
  for (const { start, pitch, length, loud, track } of notes) {
    pen.fillStyle = `hsl(${HUES[track % HUES.length]} 62% 52% / ${0.45 + (0.55 * loud) / 127})`;
    pen.fillRect(x(start) + 0.5, (top - pitch) * row, Math.max(2, x(length) - 1), Math.max(2, row - 1));
  }
  if (at === undefined) return;
  pen.fillStyle = style.color;
  pen.fillRect(x(at), 0, 1.5, high);
}

// A button that plays a score with oscillators and stops it.
function playing(button, score, draw) {
  let sound = null, frame = 0;
  const stop = () => {
    cancelAnimationFrame(frame);
    sound?.close();
    sound = null;
    button.textContent = "Play";
    draw();
  };
  const start = () => {
    sound = new AudioContext();
    const second = score.tempo / 60 * TICKS, begin = sound.currentTime + 0.08; // in ticks
    const loudest = sound.createDynamicsCompressor();
    loudest.connect(sound.destination);
    for (const note of score.notes) voice(sound, loudest, note, begin, second, score.drums);
    const end = Math.max(...score.notes.map((n) => n.start + n.length)) / second;
    button.textContent = "Stop playing";
    const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    const tick = () => {
      const now = sound.currentTime - begin;
      if (now > end + 0.3) return stop();
      draw(calm ? Math.floor(now * second / TICKS) * TICKS : Math.max(0, now * second));
      frame = requestAnimationFrame(tick);
    };
    tick();
  };
  button.addEventListener("click", () => (sound ? stop() : start()));
  return { stop: () => sound && stop() };
}

function voice(sound, out, { start, pitch, length, loud, track }, begin, second, drums) {
  const from = begin + start / second, to = from + Math.min(length / second, drums.has(track) ? 0.12 : 60);
  const tone = sound.createOscillator(), gain = sound.createGain(), peak = 0.16 * (loud / 127);
  tone.type = drums.has(track) ? "square" : "triangle";
  tone.frequency.value = 440 * 2 ** ((pitch - 69) / 12);
  gain.gain.setValueAtTime(0, from);
  gain.gain.linearRampToValueAtTime(peak, from + 0.012);
  gain.gain.setTargetAtTime(peak * 0.55, from + 0.012, 0.25);
  gain.gain.setTargetAtTime(0, to, 0.06);
  tone.connect(gain).connect(out);
  tone.start(from);
  tone.stop(to + 0.4);
}

// ---- both --------------------------------------------------------------------------------------

// Links to the rendered object, as files.
function offer(caption, rendered, suffixes) {
  for (const [kind, suffix] of Object.entries(suffixes)) {
    if (!rendered?.[kind]) continue;
    const link = element("a", "", `Save .${suffix}`);
    link.href = `data:${kind};base64,${rendered[kind]}`;
    link.download = `seriatim.${suffix}`;
    caption.append(link);
  }
}

export const TYPES = { music: ["audio/midi"], image: ["image/png"] };

export function element(name, kind = "", text = "") {
  const made = document.createElement(name);
  made.className = kind;
  made.textContent = text;
  return made;
}
