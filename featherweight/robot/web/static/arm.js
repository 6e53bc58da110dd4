// The arm's geometry, as the package's kinematics have it, and its drawing from the side and from above.

const BASE = 0.0606, SHOULDER = 0.0245, UPPER = 0.0813, FORE = 0.16519, TOOL = 0.085, RAD = Math.PI / 180;

/** Return the points of the arm in metres, world frame, for six degrees: foot, shoulder, elbow, wrist, tool. */
export function armPoints(degrees) {
  const [q1, q2, q3, q4, q5] = degrees.map((angle) => angle * RAD);
  const out = [Math.cos(q1), Math.sin(q1)], left = [-Math.sin(q1), Math.cos(q1)];
  const z0 = BASE + SHOULDER, lift = q3 - q2;
  const place = (r, z, side = 0) => [r * out[0] + side * left[0], r * out[1] + side * left[1], z];
  const elbow = [UPPER * Math.sin(q2), z0 + UPPER * Math.cos(q2)];
  const wrist = [elbow[0] + FORE * Math.cos(lift), elbow[1] + FORE * Math.sin(lift)];
  // The tool's direction in the frame of the forearm is (sin q5 cos q4, sin q5 sin q4, cos q5).
  const up = Math.sin(q5) * Math.cos(q4), side = -Math.sin(q5) * Math.sin(q4), along = Math.cos(q5);
  const r = along * Math.cos(lift) - up * Math.sin(lift), z = along * Math.sin(lift) + up * Math.cos(lift);
  return [[0, 0, 0], place(0, z0), place(...elbow), place(...wrist),
    place(wrist[0] + TOOL * r, wrist[1] + TOOL * z, TOOL * side)];
}

/** Where the arm will be: it walks to the goal at most as fast as the follower lets it. */
export class Prediction {
  constructor() { this.degrees = null; }

  /** Let time pass; return the predicted degrees, or null while nobody leads. */
  advance(reported, goal, seconds, degreesPerSecond) {
    if (!goal || !reported) { this.degrees = null; return null; }
    const step = degreesPerSecond * Math.min(seconds, 0.2);
    this.degrees = (this.degrees || reported).map((now, i) => now + Math.max(-step, Math.min(step, goal[i] - now)));
    return this.degrees;
  }
}

/**
 * Return where points of the world appear in a picture of a camera, in its pixels; null for what lies behind it.
 * @param {object} view {fovy_deg, pose}: rows of (rotation | place) from the world to the camera: x right, y down, z ahead
 */
export function project(points, { fovy_deg: fovy, pose }, width, height) {
  const focal = height / 2 / Math.tan(fovy * RAD / 2);
  return points.map(([x, y, z]) => {
    const [right, down, ahead] = [0, 4, 8].map((i) => pose[i] * x + pose[i + 1] * y + pose[i + 2] * z + pose[i + 3]);
    return ahead > 0.01 ? [focal * right / ahead + (width - 1) / 2, focal * down / ahead + (height - 1) / 2] : null;
  });
}

/** Draw where the arm will be over the camera's picture, which fills its frame as `object-fit: contain` has it. */
export function drawGhost(canvas, degrees, view, picture) {
  const ratio = window.devicePixelRatio || 1, width = canvas.clientWidth, height = canvas.clientHeight;
  canvas.width = Math.round(width * ratio); canvas.height = Math.round(height * ratio);
  const scale = Math.min(width / picture.naturalWidth, height / picture.naturalHeight);
  const left = (width - scale * picture.naturalWidth) / 2, top = (height - scale * picture.naturalHeight) / 2;
  const points = project(armPoints(degrees), view, picture.naturalWidth, picture.naturalHeight)
    .filter((point) => point).map(([x, y]) => [left + (x + 0.5) * scale, top + (y + 0.5) * scale]);
  const pen = canvas.getContext("2d");
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.lineCap = pen.lineJoin = "round";
  // A dark line below a bright one is seen on every ground.
  for (const [colour, wide, dashes] of [["#16202b", 6, []], ["#ffb347", 3, [7, 6]]]) {
    pen.strokeStyle = colour; pen.lineWidth = wide; pen.setLineDash(dashes);
    pen.beginPath(); points.forEach((point, i) => pen[i ? "lineTo" : "moveTo"](...point)); pen.stroke();
    const end = points[points.length - 1];
    pen.setLineDash([]);
    if (end) { pen.beginPath(); pen.arc(end[0], end[1], 4 + (degrees[5] + 90) / 36, 0, 2 * Math.PI); pen.stroke(); }
  }
}

/** Draw the arm, and cubes and bin if the scene is known, twice: from the side, in the arm's plane, and from above. */
export function drawArm(canvas, degrees, ghost, scene, words) {
  const ratio = window.devicePixelRatio || 1, width = canvas.clientWidth, height = canvas.clientHeight;
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio); canvas.height = Math.round(height * ratio);
  }
  const pen = canvas.getContext("2d"), style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(name).trim();
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, width, height);
  const half = width / 2, scale = Math.min(half / 0.72, height / 0.5);
  const side = ([x, y, z]) => [half * 0.3 + Math.hypot(x, y) * Math.sign(side.heading(x, y)) * scale, height * 0.86 - z * scale];
  const above = ([x, y]) => [half + half / 2 - y * scale, height * 0.86 - x * scale];
  pen.strokeStyle = colour("--line"); pen.lineWidth = 1;
  for (const [from, to] of [[4, half - 8], [half + 8, width - 4]]) {
    pen.beginPath(); pen.moveTo(from, height * 0.86); pen.lineTo(to, height * 0.86); pen.stroke();
  }
  pen.fillStyle = colour("--soft"); pen.font = "12px system-ui, sans-serif";
  pen.fillText(words.side, 6, height - 6); pen.fillText(words.above, half + 10, height - 6);
  const draw = (angles, name, dashes) => {
    const points = armPoints(angles), heading = angles[0] * RAD;
    side.heading = (x, y) => (x * Math.cos(heading) + y * Math.sin(heading) < 0 ? -1 : 1);
    for (const view of [side, above]) {
      pen.strokeStyle = colour(name); pen.fillStyle = colour(name); pen.setLineDash(dashes);
      pen.lineWidth = dashes.length ? 2 : 5; pen.lineCap = pen.lineJoin = "round";
      pen.beginPath(); points.forEach((point, i) => pen[i ? "lineTo" : "moveTo"](...view(point))); pen.stroke();
      pen.setLineDash([]);
      const [x, y] = view(points[4]);
      pen.beginPath(); pen.arc(x, y, 2 + (angles[5] + 90) / 36, 0, 2 * Math.PI);
      pen.lineWidth = 2; pen.stroke();
    }
  };
  if (scene && degrees) drawScene(pen, scene, scale, { side, above }, degrees[0] * RAD);
  if (degrees) draw(degrees, "--ink", []);
  if (ghost) draw(ghost, "--ghost", [6, 5]);
}

const CUBE = 0.022, BIN = 0.08, COLOURS = ["#c0392b", "#1e7d43", "#2c6fbb", "#b7770d", "#7d3c98", "#0e7c86"];

function drawScene(pen, scene, scale, { side, above }, heading) {
  // From the side things stand at their distance along the arm's heading; what lies behind the arm is left out.
  const along = ([x, y]) => x * Math.cos(heading) + y * Math.sin(heading);
  side.heading = () => 1;
  const box = ([x, y], size) => pen.strokeRect(x - size * scale / 2, y - size * scale / 2, size * scale, size * scale);
  pen.lineWidth = 2; pen.strokeStyle = "#8a6d3b";
  box(above(scene.bin), BIN);
  scene.cubes.forEach((cube, i) => {
    pen.strokeStyle = COLOURS[i % COLOURS.length];
    box(above(cube), CUBE);
    if (along(cube) > 0) box(side([along(cube), 0, cube[2]]), CUBE);
  });
}
