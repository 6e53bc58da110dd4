// What a hand can hold: sliders, pad, arrows, the button that lets drive, space bar, gamepad. Held is led, let go is held still.

export const JOINTS = ["shoulder_pan", "shoulder_lift", "elbow_flex", "forearm_roll", "wrist_flex", "gripper"];
const PAD_MM_S = 60, JOINT_DEG_S = 60, DEAD_ZONE = 0.12;
const ARROWS = [["forward", 0, 1], ["back", 0, -1], ["left", 1, 1], ["right", 1, -1], ["up", 2, 1], ["down", 2, -1],
  ["open", 5, 1], ["close", 5, -1]];
/** Of the standard gamepad: the left shoulder button is the dead man's, B stops, Start clears a stop. */
const HOLD_BUTTON = 4, STOP_BUTTON = 1, RESET_BUTTON = 9;

export class Controls {
  /**
   * @param {object} on changed(), stop(), reset(), gamepad(name or null)
   */
  constructor(on) {
    this.on = on; this.held = new Set(); this.values = null; this.reported = null; this.pad = null; this.arrows = new Map();
    this.sticks = null; this.buttons = []; this.may = true; this.sliders = [];
    this.makeSliders(); this.makePad(); this.makeArrows(); this.makeHold(); this.watchKeys();
    for (const name of ["pointerup", "pointercancel"]) window.addEventListener(name, () => this.releasePointers());
    // Who looks elsewhere does not drive.
    window.addEventListener("blur", () => this.releaseAll());
    window.addEventListener("pagehide", () => this.releaseAll());
    document.addEventListener("visibilitychange", () => { if (document.hidden) this.releaseAll(); });
  }

  /** Return what the hand wants now: null, or ["angles" | "joint" | "twist", six numbers]. */
  wish() {
    if (!this.may || document.hidden) return null;
    if (this.sticks) return ["joint", this.sticks];
    const motion = [0, 0, 0, 0, 0, 0];
    if (this.pad) { motion[0] += this.pad[0]; motion[1] += this.pad[1]; }
    for (const [axis, sign] of this.arrows.values()) motion[axis] += sign * (axis < 3 ? PAD_MM_S : JOINT_DEG_S);
    if (this.pad || this.arrows.size) return ["twist", motion];
    return this.held.size && this.values ? ["angles", this.values] : null;
  }

  get isHeld() { return this.held.size > 0 || this.pad !== null || this.arrows.size > 0 || this.sticks !== null; }

  /** The robot says where it is: sliders that nobody holds go there. */
  follow(degrees) {
    this.reported = degrees;
    if (this.held.size) return;
    this.values = null;
    degrees.forEach((angle, i) => this.show(i, Math.round(angle)));
  }

  allow(may) {
    this.may = may;
    if (!may) this.releaseAll();
    for (const one of document.querySelectorAll("#controls input, #arrows button, #hold")) one.disabled = !may;
  }

  releaseAll() {
    const was = this.isHeld;
    this.held.clear(); this.arrows.clear(); this.pad = null; this.sticks = null; this.moveKnob(0, 0); this.press(false);
    if (was) this.on.changed();
  }

  releasePointers() {
    if (!this.isHeld) return;
    for (const name of [...this.held]) if (!name.startsWith("key")) this.held.delete(name);
    for (const name of [...this.arrows.keys()]) if (!name.startsWith("key")) this.arrows.delete(name);
    this.pad = null; this.moveKnob(0, 0); this.press(this.held.size > 0);
    this.on.changed();
  }

  take(name) {
    if (!this.may) return;
    if (!this.held.size) this.values = (this.reported || [0, 0, 0, 0, 0, 0]).slice();
    this.held.add(name); this.press(true); this.on.changed();
  }

  let(name) {
    if (this.held.delete(name)) { this.press(this.held.size > 0); this.on.changed(); }
  }

  press(isPressed) { document.getElementById("hold").setAttribute("aria-pressed", String(isPressed)); }

  show(i, value) {
    const { input, output } = this.sliders[i];
    if (Number(input.value) !== value) input.value = value;
    const text = `${Math.round(value)}°`;
    if (output.textContent !== text) { output.textContent = text; input.setAttribute("aria-valuetext", text); }
  }

  makeSliders() {
    const home = document.getElementById("sliders");
    JOINTS.forEach((name, i) => {
      const row = document.createElement("div"), label = document.createElement("label");
      const input = document.createElement("input"), output = document.createElement("output");
      row.className = "joint"; label.htmlFor = input.id = name; label.dataset.word = name; output.htmlFor = name;
      Object.assign(input, { type: "range", min: -90, max: 90, step: 1, value: 0 });
      output.setAttribute("aria-live", "off");
      row.append(label, input, output); home.append(row); this.sliders.push({ input, output });
      input.addEventListener("pointerdown", () => this.take("slider"));
      input.addEventListener("input", () => {
        if (this.held.size && this.values) { this.values[i] = Number(input.value); this.show(i, this.values[i]); this.on.changed(); }
        else if (this.reported) this.show(i, Math.round(this.reported[i]));
      });
      input.addEventListener("keydown", (event) => {
        if (/^(Arrow|Page|Home|End)/.test(event.key)) this.take(`key ${name}`);
      });
      input.addEventListener("keyup", () => this.let(`key ${name}`));
      input.addEventListener("blur", () => this.let(`key ${name}`));
    });
  }

  makePad() {
    const pad = document.getElementById("pad");
    const move = (event) => {
      const box = pad.getBoundingClientRect(), limit = (value) => Math.max(-1, Math.min(1, value));
      const x = limit((event.clientX - box.left) / box.width * 2 - 1), y = limit((event.clientY - box.top) / box.height * 2 - 1);
      this.pad = [-y * PAD_MM_S, -x * PAD_MM_S]; this.moveKnob(x, y); this.on.changed();
    };
    pad.addEventListener("pointerdown", (event) => { if (this.may) { pad.setPointerCapture(event.pointerId); move(event); } });
    pad.addEventListener("pointermove", (event) => { if (this.pad) move(event); });
  }

  moveKnob(x, y) { document.getElementById("knob").style.translate = `${x * 3.5}rem ${y * 3.5}rem`; }

  makeArrows() {
    const home = document.getElementById("arrows");
    for (const [name, axis, sign] of ARROWS) {
      const button = document.createElement("button");
      button.type = "button"; button.dataset.word = name; button.id = `move-${name}`;
      home.append(button);
      this.holdable(button, (source) => { this.arrows.set(`${source} ${name}`, [axis, sign]); this.on.changed(); },
        (source) => { if (this.arrows.delete(`${source} ${name}`)) this.on.changed(); });
    }
  }

  makeHold() {
    this.holdable(document.getElementById("hold"), (source) => this.take(`${source} hold`), (source) => this.let(`${source} hold`));
  }

  /** A button that counts for as long as a pointer or a key holds it. */
  holdable(button, begin, end) {
    button.addEventListener("pointerdown", () => { if (this.may) begin("pointer"); });
    button.addEventListener("contextmenu", (event) => event.preventDefault());
    button.addEventListener("keydown", (event) => {
      if ((event.key === " " || event.key === "Enter") && this.may) { event.preventDefault(); if (!event.repeat) begin("key"); }
    });
    button.addEventListener("keyup", (event) => { if (event.key === " " || event.key === "Enter") end("key"); });
    button.addEventListener("blur", () => end("key"));
  }

  watchKeys() {
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape") { this.releaseAll(); this.on.stop(); }
      if (event.key !== " " || event.repeat || event.target.closest("button, select, summary, a")) return;
      event.preventDefault(); this.take("key space");
    });
    document.addEventListener("keyup", (event) => { if (event.key === " ") this.let("key space"); });
  }

  /** Look at the gamepad; browsers tell it only to who asks. */
  poll() {
    const pad = [...(navigator.getGamepads ? navigator.getGamepads() : [])].find(Boolean);
    this.on.gamepad(pad ? pad.id : null);
    if (!pad) { if (this.sticks) { this.sticks = null; this.on.changed(); } return; }
    const pressed = pad.buttons.map((button) => button.pressed), isNew = (i) => pressed[i] && !this.buttons[i];
    if (isNew(STOP_BUTTON)) this.on.stop();
    if (isNew(RESET_BUTTON)) this.on.reset();
    this.buttons = pressed;
    const axis = (i) => {
      const value = pad.axes[i] || 0, size = Math.abs(value);
      return size < DEAD_ZONE ? 0 : Math.sign(value) * (size - DEAD_ZONE) / (1 - DEAD_ZONE);
    };
    const pair = (up, down) => Number(Boolean(pressed[up])) - Number(Boolean(pressed[down]));
    const was = this.sticks !== null;
    this.sticks = pressed[HOLD_BUTTON] && this.may && document.hasFocus()
      ? [-axis(0), -axis(1), -axis(3), -axis(2), pair(12, 13), pair(15, 14)].map((rate) => rate * JOINT_DEG_S) : null;
    if (was !== (this.sticks !== null)) this.on.changed();
  }
}
