// Puts the page together: what the hand holds goes out, what the robot says is shown.

import { armPoints, drawArm, drawGhost, Prediction } from "./arm.js";
import { Classroom } from "./classroom.js";
import { Controls } from "./controls.js";
import { Link } from "./link.js";
import { choose, explain, preferred, say } from "./words.js";

const GHOST_MS = 300, GOOD_MS = 150, BLIND_MS = 3000, SPEED = { SYNC: 30, ACTIVE: 80 };
const at = (id) => document.getElementById(id);
const prediction = new Prediction(), isDark = matchMedia("(prefers-color-scheme: dark)");
let newest = null, visitor = null, trouble = "connecting", troubleText = "", shownPicture = "", isBack = false, drawnAt = 0, scene = null, views = {}, blind = {}, drawn = "", pictures = [], pictureAt = 0;

const controls = new Controls({
  changed: () => { if (controls.isHeld) isBack = false; link.beat(true); },
  stop: () => link.ask("stop"),
  reset: () => link.ask("reset"),
  gamepad: (name) => write("gamepad", say(name ? "gamepad" : "noGamepad")),
});
const link = new Link({ welcome, state, picture, trouble: complain, wish: () => controls.wish() });
const classroom = new Classroom((request) => link.tell({ class: request }), (data) => link.send(data));

/** Write a text if it is another one: a screen reader hears changes alone. */
function write(id, text) { if (at(id).textContent !== text) at(id).textContent = text; }

function complain(key, text) {
  trouble = key; troubleText = text; newest = null;
  controls.releaseAll();
  show();
}

function welcome(message) {
  visitor = message; trouble = null; scene = null; views = {}; blind = {}; pictureAt = performance.now();
  write("whom", message.room === "here" ? "" : `${message.hello} · ${message.room}`);
  const choice = at("robot");
  choice.replaceChildren(...message.robots.map((name) => new Option(name, name, false, name === message.robot)));
  choice.hidden = at("robot-label").hidden = message.robots.length < 2;
  controls.allow(message.role !== "observer");
  at("stop").disabled = message.role === "observer";
  show();
}

function state(message) {
  newest = message;
  if (message.q) controls.follow(message.q);
  classroom.show(message.class, visitor);
  scene = message.scene || scene;
  views = message.views || views;
  blind = message.blind || blind;
  show();
}

function picture(data) {
  const url = URL.createObjectURL(new Blob([data], { type: "image/jpeg" })), image = at("picture"), before = shownPicture;
  image.onload = () => { if (before) URL.revokeObjectURL(before); };
  shownPicture = image.src = url;
  pictureAt = performance.now();
  pictures.push(pictureAt);
}

function show() {
  at("trouble").hidden = !trouble || trouble === "connecting";
  if (trouble) {
    const known = { token: "token", lost: "lost", full: "full", noSocket: "noSocket", robot: "noRobot", room: "room" }[trouble];
    write("trouble", known ? say(known) + (trouble === "room" ? ` (${troubleText})` : "") : troubleText);
  }
  const isShown = Boolean(visitor) && trouble !== "token";
  at("main").hidden = at("bar").hidden = !isShown;
  if (!isShown) return;
  const mode = newest && newest.mode ? newest.mode : "";
  at("mode").dataset.mode = mode;
  write("mode", modeText(mode));
  at("reset").hidden = mode !== "ESTOP" || visitor.role === "observer";
  at("hold").hidden = mode === "ESTOP";
  write("driver", !newest || !newest.by ? say("nobody") : newest.mine ? say("you") : newest.by);
  const trip = roundTrip();
  write("trip", trip === null ? "–" : `${trip < 10 ? Math.round(trip) : Math.round(trip / 5) * 5} ms`);
  showLine(trip, mode);
  showCameras(newest ? newest.cameras : []);
  const isKnown = newest && newest.q, centimetres = (metres) => Math.round(metres * 100);
  const tool = isKnown ? armPoints(newest.q)[4] : [0, 0, 0], reach = centimetres(Math.hypot(tool[0], tool[1]));
  write("tool", isKnown ? `${reach} cm, ↑ ${centimetres(tool[2])} cm` : "–");
  const label = !isKnown ? say("silent")
    : say("drawing", { r: reach, z: centimetres(tool[2]), a: Math.round(newest.q[0]), g: Math.round(newest.q[5]) });
  if (at("drawing").getAttribute("aria-label") !== label) at("drawing").setAttribute("aria-label", label);
}

function modeText(mode) {
  if (!newest) return say("connecting");
  if (!mode || newest.silent) return say("silent");
  if (newest.lost) return say("lostRobot");
  if (isBack) return say("background");
  const isOthers = newest.by && !newest.mine && (mode === "SYNC" || mode === "ACTIVE");
  if (newest.late && controls.isHeld) return say("late", { ms: newest.late });
  const parts = [isOthers ? say("other", { name: newest.by }) : say(mode)];
  const reason = explain(newest.why || "");
  if (reason) parts.push(reason);
  if (mode === "ACTIVE" && newest.limit && !reason) parts.push(say("limited"));
  const text = parts.join(" · ");
  return visitor.role === "observer" ? `${text} · ${say("observer")}` : text;
}

/** A light and its word: how good the line is, and grey while the arm is held. */
function showLine(trip, mode) {
  const isMoving = mode === "SYNC" || mode === "ACTIVE" || mode === "IDLE";
  const light = !isMoving || trip === null ? "still" : trip < GOOD_MS ? "good" : trip < GHOST_MS ? "slow" : "bad";
  at("light").dataset.light = light;
  write("line", say(light));
  write("age", newest && newest.age !== undefined ? `${newest.age} ms` : "–");
  write("loss", newest && newest.loss !== undefined ? `${newest.loss} %` : "–");
  const now = performance.now();
  pictures = pictures.filter((when) => now - when < 2000);
  write("rate", pictures.length ? `${Math.round(pictures.length / 2)} / s` : "–");
}

function roundTrip() {
  return link.roundTrip === null ? null : Math.max(0, link.roundTrip + (newest && newest.rtt ? newest.rtt : 0));
}

function showCameras(names) {
  const choice = at("camera");
  at("camera-figure").hidden = !names.length;
  at("camera-choice").hidden = names.length < 2;
  if ([...choice.options].map((option) => option.value).join() !== names.join()) {
    choice.replaceChildren(...names.map((name) => new Option(name, name)));
  }
  link.camera = names.length ? choice.value : "";
  at("picture").alt = say("picture");
  showBlind(Boolean(names.length), blind[link.camera]);
}

/** Say over a picture that it shows the past, and why if the robot knows. */
function showBlind(hasCamera, why) {
  const isBlind = hasCamera && Boolean(why || performance.now() - pictureAt > BLIND_MS);
  at("blind").hidden = !isBlind;
  at("picture-frame").dataset.blind = isBlind ? "yes" : "no";
  const reason = why ? ` (${why.split(": ").slice(1).join(": ")})` : "";
  write("blind", isBlind ? say("blind") + reason : "");
}

/** Draw at every picture of the screen; the ghost walks between the robot's words. */
function animate(now) {
  const seconds = (now - drawnAt) / 1000;
  drawnAt = now;
  controls.poll();
  const isDelayed = (roundTrip() ?? 0) > GHOST_MS, wish = controls.wish();
  const goal = !wish || !newest ? null : wish[0] === "angles" ? wish[1] : newest.goal;
  const ghost = isDelayed ? prediction.advance(newest && newest.q, goal, seconds, SPEED[newest && newest.mode] || 30)
    : prediction.advance(null, null, 0, 0);
  at("ghost").hidden = !ghost;
  at("drawing").dataset.ghost = ghost ? ghost.map(Math.round).join(" ") : "";
  const view = ghost && !at("camera-figure").hidden && at("picture").naturalWidth ? views[link.camera] : null;
  at("over").hidden = !view;
  if (view) drawGhost(at("over"), ghost, view, at("picture"));
  if (newest && !at("main").hidden) {
    // The same picture again would only empty the battery.
    const canvas = at("drawing"), words = { side: say("side"), above: say("above") };
    const what = JSON.stringify([newest.q, ghost, scene, words, canvas.clientWidth, canvas.clientHeight, isDark.matches]);
    if (what !== drawn) drawArm(canvas, newest.q, ghost, scene, words);
    drawn = what;
  }
  requestAnimationFrame(animate);
}

at("stop").addEventListener("click", () => { controls.releaseAll(); link.ask("stop"); });
at("reset").addEventListener("click", () => link.ask("reset"));
at("robot").addEventListener("change", () => link.choose(at("robot").value));
at("language").addEventListener("change", () => { localStorage.setItem("language", at("language").value); speak(at("language").value); });
document.addEventListener("visibilitychange", () => { if (document.hidden) isBack = newest !== null; });

function speak(language) {
  choose(language);
  at("language").value = language;
  classroom.speak();
  show();
}

speak(localStorage.getItem("language") || preferred());
if ("WebSocket" in window) {
  link.open();
  requestAnimationFrame(animate);
} else {
  complain("noSocket", "");
}
