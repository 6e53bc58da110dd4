// The classroom's part of the page: turns, challenge, recording, the teacher's stop, the leader board.

import { say } from "./words.js";

const SLOTS = ["gripper", "master"], MOST_BYTES = 4000000;
const at = (id) => document.getElementById(id);
const write = (id, text) => { if (at(id).textContent !== text) at(id).textContent = text; };

export class Classroom {
  /**
   * @param {function} ask sends a request
   * @param {function} send sends a file
   */
  constructor(ask, send) {
    this.told = null; this.visitor = null; this.board = "";
    at("queue").addEventListener("click", () => ask({ turn: !(this.told && this.told.waiting) }));
    at("challenge").addEventListener("click", () => ask({ challenge: !(this.told && this.told.own && this.told.own.challenge) }));
    at("record").addEventListener("click", () => ask({ record: !(this.told && this.told.own && this.told.own.recording) }));
    for (const slot of SLOTS) at(`hand-in-${slot}`).addEventListener("change", (event) => this.handIn(slot, event.target, ask, send));
    at("stop-all").addEventListener("click", () => ask({ all: "stop" }));
    at("reset-all").addEventListener("click", () => ask({ all: "reset" }));
  }

  async handIn(slot, input, ask, send) {
    const [file] = input.files;
    if (!file) return;
    input.disabled = true;
    ask({ upload: { slot, name: file.name, bytes: file.size } });
    try {
      if (file.size <= MOST_BYTES) await send(await file.arrayBuffer());
    } catch {
      write(`handed-${slot}`, say("handInLost"));
    }
    // So that the same file can be chosen again, after it was changed.
    input.value = "";
    input.disabled = false;
  }

  show(told, visitor) {
    if (!told) return;
    at("classroom").hidden = false;
    this.told = told; this.visitor = visitor;
    this.speak();
  }

  speak() {
    const told = this.told;
    if (!told) return;
    at("teacher").hidden = this.visitor.role !== "instructor";
    write("all-stopped", told.stopped ? say("allStopped") : "");
    at("turns").hidden = !told.turns || this.visitor.role !== "operator";
    if (told.turns) {
      const turn = told.mine ? say("yourTurn", { s: told.left }) : told.waiting ? say("waitTurn", { n: told.waiting, name: told.driver || "–" })
        : told.driver ? say("other", { name: told.driver }) : say("freeTurn");
      write("turn", turn);
      write("queue", say(told.waiting || told.mine ? "leaveQueue" : "joinQueue"));
    }
    const own = told.own;
    at("own").hidden = !own || this.visitor.role === "observer";
    if (own) {
      write("challenge", own.challenge ? say("endChallenge", { s: own.left }) : say("challenge"));
      write("record", own.recording ? say("endRecord", { n: own.frames }) : say("record"));
      const news = [own.points === null || own.points === undefined ? "" : say("scored", { p: own.points }),
        own.episodes ? say("saved", { n: own.episodes }) : "", own.trouble || ""].filter(Boolean);
      write("own-news", news.join(" · "));
      for (const slot of SLOTS) {
        const found = (own.uploads || {})[slot];
        if (found) write(`handed-${slot}`, [say({ coming: "handInComing", checking: "handInChecking", good: "handInGood",
          faulty: "handInFaulty" }[found.state]), found.text].filter(Boolean).join(" "));
      }
    }
    const text = JSON.stringify(told.board);
    if (text === this.board) return;
    this.board = text;
    at("board").replaceChildren(...told.board.map((row) => {
      const line = document.createElement("tr");
      for (const value of [row.name, row.points, `${row.placed} / ${row.cubes}`, `${Math.round(row.time_s * 10) / 10} s`]) {
        const cell = document.createElement("td");
        cell.textContent = value;
        line.append(cell);
      }
      return line;
    }));
  }
}
