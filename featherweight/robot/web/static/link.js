// The socket to the server: key, clock, heart-beat, and a new try when it breaks.

const BEAT_MS = 33, IDLE_MS = 100, MOST_WAITING_BYTES = 1500, PIECE_BYTES = 16384;

export class Link {
  /**
   * @param {object} on welcome(hello), state(message), picture(bytes), trouble(key, text), wish() -> [mode, six] or null
   */
  constructor(on) {
    this.on = on; this.socket = null; this.robot = null; this.camera = ""; this.wait = 500; this.roundTrip = null;
    this.last = -Infinity; this.wasWishing = false; this.isOver = false;
    // A key that came with the address is kept for this tab, and taken out of sight.
    const given = new URLSearchParams(location.hash.slice(1)).get("key");
    if (given) { sessionStorage.setItem("key", given); history.replaceState(null, "", location.pathname); }
    this.key = given || sessionStorage.getItem("key") || "";
    setInterval(() => this.beat(), BEAT_MS);
  }

  open() {
    const url = new URL("page", location.href);
    url.protocol = location.protocol === "https:" ? "wss:" : "ws:"; url.hash = "";
    const socket = this.socket = new WebSocket(url);
    socket.binaryType = "arraybuffer";
    this.echo = 0; this.echoAt = 0; this.stateSeen = 0; this.pictureSeen = 0; this.isWelcome = false; this.problem = null;
    socket.onopen = () => socket.send(JSON.stringify({ hello: this.key, robot: this.robot }));
    socket.onmessage = (event) => this.take(event.data);
    socket.onclose = () => {
      if (this.socket !== socket) return;
      this.isWelcome = false;
      if (this.problem === "token") { this.isOver = true; return; }
      if (!this.problem) this.on.trouble("lost", "");
      setTimeout(() => { if (this.socket === socket) this.open(); }, this.wait);
      this.wait = Math.min(3000, this.wait * 2);
    };
  }

  /** Look at another robot. */
  choose(robot) { this.robot = robot; this.wait = 100; this.problem = "choice"; this.socket.close(); }

  take(data) {
    if (data instanceof ArrayBuffer) { this.pictureSeen += 1; this.on.picture(data); return; }
    const message = JSON.parse(data), now = performance.now();
    if (message.error) { this.problem = message.error; this.on.trouble(message.error, message.text); return; }
    if (message.hello) { this.isWelcome = true; this.wait = 500; this.robot = message.robot; this.on.welcome(message); return; }
    this.echo = message.t; this.echoAt = now; this.stateSeen = message.s;
    if (message.e) {
      const trip = now - message.e - message.h;
      this.roundTrip = this.roundTrip === null ? trip : this.roundTrip + 0.1 * (trip - this.roundTrip);
    }
    this.on.state(message);
  }

  /** Say whether and how the page leads; at once when that changes. */
  beat(isUrgent = false) {
    if (!this.isWelcome || this.socket.readyState !== WebSocket.OPEN) return;
    const now = performance.now(), wish = this.on.wish(), isRelease = !wish && this.wasWishing;
    if (!isRelease && !isUrgent && now - this.last < (wish ? BEAT_MS - 4 : IDLE_MS - 4)) return;
    // What waits in a slow line would come too late: the next beat is newer. Only letting go is always said.
    if (!isRelease && this.socket.bufferedAmount > MOST_WAITING_BYTES) return;
    this.last = now; this.wasWishing = Boolean(wish);
    const tenth = (value) => Math.round(value * 10) / 10;
    this.socket.send(JSON.stringify({
      t: tenth(now), e: this.echo, h: tenth(now - this.echoAt), s: this.stateSeen, p: this.pictureSeen, camera: this.camera,
      ...(wish ? { w: [wish[0], wish[1].map(tenth)] } : {}),
    }));
  }

  ask(kind) { this.tell({ ask: kind }); }

  /** Send a file in pieces, each when nothing else waits: a hand that drives comes first. Throws if the line breaks. */
  async send(data) {
    const socket = this.socket;
    for (let at = 0; at < data.byteLength;) {
      if (this.socket !== socket || socket.readyState !== WebSocket.OPEN) throw new Error("lost");
      if (!socket.bufferedAmount && !this.on.wish()) {
        socket.send(data.slice(at, at + PIECE_BYTES));
        at += PIECE_BYTES;
      }
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
  }

  tell(message) {
    if (this.isWelcome && this.socket.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify(message));
  }
}
