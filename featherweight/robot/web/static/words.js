// Every sentence of the page in its three languages. The first is the one to copy for a fourth.

export const WORDS = {
  en: {
    title: "Arm", language: "Language", robot: "Robot", state: "State", driver: "Driver", trip: "Round trip", tool: "Tool",
    line: "Line", good: "good", slow: "slow", bad: "bad", still: "held", age: "Age", loss: "Lost", rate: "Pictures", open: "Open", close: "Close",
    view: "View", camera: "Camera", controls: "Controls", nobody: "nobody", you: "you", side: "side", above: "above",
    ghost: "Dashed: where the arm will be", stop: "EMERGENCY STOP", reset: "Clear the stop", hold: "Hold to drive",
    help: "The arm moves only while you hold a control or the space bar. Escape stops it.",
    move: "Move tool and gripper", forward: "Forward", back: "Back", left: "Left", right: "Right", up: "Up", down: "Down",
    noGamepad: "No gamepad: press one of its buttons.", gamepad: "Gamepad: hold its left shoulder button and use the sticks.",
    shoulder_pan: "Turn", shoulder_lift: "Shoulder", elbow_flex: "Elbow", forearm_roll: "Forearm", wrist_flex: "Wrist",
    gripper: "Gripper", picture: "Picture of the robot's camera",
    drawing: "The arm: tool {r} cm out, {z} cm high, turned by {a} degrees, gripper {g} degrees",
    IDLE: "Ready", SYNC: "Catching up slowly", ACTIVE: "Following you", HOLD: "Held still", ESTOP: "Stopped", other: "Driven by {name}",
    observer: "You are watching; you cannot drive.", silent: "Nothing is heard from the robot; its arm holds itself.",
    lostRobot: "The robot's cable is lost; the arm is held.", limited: "At a limit.",
    blind: "This picture is old: the camera gives no new one.",
    late: "What you do arrives too late (over {ms} ms), so the arm stays held.",
    lost: "The connection is lost; the arm is held. Trying again.", connecting: "Connecting",
    token: "The key of this page is wrong or old; open the address that the command printed.",
    noSocket: "This browser has no WebSocket; use a newer one.", room: "The room cannot be reached.",
    full: "Too many pages are open; close some.", noRobot: "That robot is not there.",
    background: "You left the page, so the arm is held. Hold a control to go on.",
    classroom: "Classroom", stopAll: "Stop all arms", resetAll: "Clear all stops", allStopped: "The teacher has stopped all arms.",
    board: "Leader board", who: "Name", points: "Points", placed: "Placed", time: "Time",
    joinQueue: "Ask for a turn", leaveQueue: "Give my turn back", yourTurn: "Your turn, {s} s left", waitTurn: "Number {n} in the queue; {name} drives",
    freeTurn: "Nobody drives; ask for a turn", challenge: "Start the challenge", endChallenge: "End the challenge ({s} s left)",
    record: "Record an episode", endRecord: "Save the episode ({n} frames)", scored: "{p} points", saved: "{n} episodes saved",
    handInGripper: "Hand in a gripper (STL, 3MF, JSON)", handInMaster: "Hand in a master (STL, 3MF)", handInComing: "Coming in …",
    handInChecking: "Being examined …", handInGood: "Good, kept:", handInFaulty: "Not kept:", handInLost: "The line broke; try again.",
  },
  ja: {
    title: "アーム", language: "言語", robot: "ロボット", state: "状態", driver: "操縦者", trip: "往復遅延", tool: "手先",
    line: "回線", good: "良好", slow: "遅い", bad: "悪い", still: "静止", age: "古さ", loss: "損失", rate: "映像", open: "開く", close: "閉じる",
    view: "映像", camera: "カメラ", controls: "操作", nobody: "なし", you: "あなた", side: "横から", above: "上から",
    ghost: "破線: これからアームが来る位置", stop: "非常停止", reset: "停止を解除", hold: "押している間だけ動く",
    help: "操作部かスペースキーを押している間だけアームが動きます。Escキーで停止します。",
    move: "手先とグリッパを動かす", forward: "前", back: "後ろ", left: "左", right: "右", up: "上", down: "下",
    noGamepad: "ゲームパッドなし: ボタンを一つ押してください。", gamepad: "ゲームパッド: 左肩ボタンを押しながらスティックを使います。",
    shoulder_pan: "旋回", shoulder_lift: "肩", elbow_flex: "肘", forearm_roll: "前腕", wrist_flex: "手首",
    gripper: "グリッパ", picture: "ロボットのカメラの映像",
    drawing: "アーム: 手先は前方 {r} cm、高さ {z} cm、旋回 {a} 度、グリッパ {g} 度",
    IDLE: "待機中", SYNC: "ゆっくり追いついています", ACTIVE: "追従中", HOLD: "静止中", ESTOP: "停止しました", other: "{name} が操縦中",
    observer: "見学中です。操縦はできません。", silent: "ロボットから応答がありません。アームは静止します。",
    lostRobot: "ロボットのケーブルが切れました。アームは静止しています。", limited: "限界に達しました。",
    blind: "この映像は古いものです。カメラから新しい映像が届きません。",
    late: "操作の到着が遅すぎるため({ms} ms 超)、アームは静止したままです。",
    lost: "接続が切れました。アームは静止しています。再接続しています。", connecting: "接続中",
    token: "このページの鍵が違うか古くなっています。コマンドが表示したアドレスを開いてください。",
    noSocket: "このブラウザにはWebSocketがありません。新しいブラウザを使ってください。", room: "ルームに接続できません。",
    full: "開いているページが多すぎます。いくつか閉じてください。", noRobot: "そのロボットはありません。",
    background: "ページを離れたため、アームは静止しています。操作部を押すと続けられます。",
    classroom: "教室", stopAll: "すべてのアームを停止", resetAll: "すべての停止を解除", allStopped: "先生がすべてのアームを停止しました。",
    board: "順位表", who: "名前", points: "得点", placed: "個数", time: "時間",
    joinQueue: "順番を取る", leaveQueue: "順番を返す", yourTurn: "あなたの番です。残り {s} 秒", waitTurn: "{n} 番目に待っています。{name} が操縦中",
    freeTurn: "操縦者なし。順番を取れます", challenge: "チャレンジ開始", endChallenge: "チャレンジ終了 (残り {s} 秒)",
    record: "エピソードを記録", endRecord: "エピソードを保存 ({n} フレーム)", scored: "{p} 点", saved: "{n} エピソード保存済み",
    handInGripper: "グリッパを提出 (STL, 3MF, JSON)", handInMaster: "マスターを提出 (STL, 3MF)", handInComing: "受信中…",
    handInChecking: "検査中…", handInGood: "合格、保存しました:", handInFaulty: "保存していません:", handInLost: "回線が切れました。もう一度試してください。",
  },
  bn: {
    title: "বাহু", language: "ভাষা", robot: "রোবট", state: "অবস্থা", driver: "চালক", trip: "যাওয়া-আসার সময়", tool: "অগ্রভাগ",
    line: "সংযোগ", good: "ভালো", slow: "ধীর", bad: "খারাপ", still: "স্থির", age: "বয়স", loss: "হারানো", rate: "ছবি", open: "খুলুন", close: "বন্ধ করুন",
    view: "দৃশ্য", camera: "ক্যামেরা", controls: "নিয়ন্ত্রণ", nobody: "কেউ না", you: "আপনি", side: "পাশ থেকে", above: "উপর থেকে",
    ghost: "ভাঙা রেখা: বাহু যেখানে পৌঁছাবে", stop: "জরুরি থামান", reset: "থামা তুলে নিন", hold: "চালাতে চেপে ধরুন",
    help: "কোনো নিয়ন্ত্রণ বা স্পেস বার চেপে ধরে রাখলেই কেবল বাহু নড়ে। Esc চাপলে থামে।",
    move: "অগ্রভাগ ও গ্রিপার সরান", forward: "সামনে", back: "পিছনে", left: "বামে", right: "ডানে", up: "উপরে", down: "নিচে",
    noGamepad: "গেমপ্যাড নেই: তার একটি বোতাম চাপুন।", gamepad: "গেমপ্যাড: বাম কাঁধের বোতাম চেপে ধরে স্টিক ব্যবহার করুন।",
    shoulder_pan: "ঘোরা", shoulder_lift: "কাঁধ", elbow_flex: "কনুই", forearm_roll: "অগ্রবাহু", wrist_flex: "কবজি",
    gripper: "গ্রিপার", picture: "রোবটের ক্যামেরার ছবি",
    drawing: "বাহু: অগ্রভাগ {r} সেমি সামনে, {z} সেমি উঁচুতে, {a} ডিগ্রি ঘোরা, গ্রিপার {g} ডিগ্রি",
    IDLE: "প্রস্তুত", SYNC: "ধীরে মিলিয়ে নিচ্ছে", ACTIVE: "আপনাকে অনুসরণ করছে", HOLD: "স্থির আছে", ESTOP: "থামানো হয়েছে", other: "{name} চালাচ্ছেন",
    observer: "আপনি দেখছেন; চালাতে পারবেন না।", silent: "রোবটের সাড়া নেই; বাহু নিজেই স্থির থাকে।",
    lostRobot: "রোবটের তার বিচ্ছিন্ন; বাহু স্থির আছে।", limited: "সীমায় পৌঁছেছে।",
    blind: "এই ছবি পুরোনো: ক্যামেরা থেকে নতুন ছবি আসছে না।",
    late: "আপনার নির্দেশ দেরিতে পৌঁছাচ্ছে ({ms} মিসে-র বেশি), তাই বাহু স্থির থাকছে।",
    lost: "সংযোগ বিচ্ছিন্ন; বাহু স্থির আছে। আবার চেষ্টা চলছে।", connecting: "সংযোগ হচ্ছে",
    token: "এই পাতার চাবি ভুল বা পুরোনো; কমান্ড যে ঠিকানা দেখিয়েছে সেটি খুলুন।",
    noSocket: "এই ব্রাউজারে WebSocket নেই; নতুন একটি ব্যবহার করুন।", room: "কক্ষে পৌঁছানো যাচ্ছে না।",
    full: "অনেক বেশি পাতা খোলা; কয়েকটি বন্ধ করুন।", noRobot: "ওই রোবট নেই।",
    background: "আপনি পাতা ছেড়েছিলেন, তাই বাহু স্থির আছে। চালাতে কোনো নিয়ন্ত্রণ চেপে ধরুন।",
    classroom: "শ্রেণিকক্ষ", stopAll: "সব বাহু থামান", resetAll: "সব থামা তুলে নিন", allStopped: "শিক্ষক সব বাহু থামিয়েছেন।",
    board: "ফলাফল", who: "নাম", points: "নম্বর", placed: "রাখা", time: "সময়",
    joinQueue: "পালা চাই", leaveQueue: "পালা ফিরিয়ে দিন", yourTurn: "আপনার পালা, {s} সেকেন্ড বাকি", waitTurn: "সারিতে {n} নম্বর; {name} চালাচ্ছেন",
    freeTurn: "কেউ চালাচ্ছেন না; পালা চাইতে পারেন", challenge: "চ্যালেঞ্জ শুরু", endChallenge: "চ্যালেঞ্জ শেষ ({s} সেকেন্ড বাকি)",
    record: "পর্ব রেকর্ড করুন", endRecord: "পর্ব সংরক্ষণ ({n} ফ্রেম)", scored: "{p} নম্বর", saved: "{n}টি পর্ব সংরক্ষিত",
    handInGripper: "গ্রিপার জমা দিন (STL, 3MF, JSON)", handInMaster: "মাস্টার জমা দিন (STL, 3MF)", handInComing: "আসছে…",
    handInChecking: "পরীক্ষা চলছে…", handInGood: "ভালো, রাখা হলো:", handInFaulty: "রাখা হয়নি:", handInLost: "লাইন কেটে গেছে; আবার চেষ্টা করুন।",
  },
};

/** What robots say about their mode, begin of the English sentence -> its other languages. */
const REASONS = [
  ["the operator let go", "操縦者が手を離しました", "চালক ছেড়ে দিয়েছেন"],
  ["the leader left", "操縦者が離れました", "চালক চলে গেছেন"],
  ["no command for", "指令が届いていません", "কোনো নির্দেশ আসছে না"],
  ["the link to the robot is lost", "ロボットとの接続が切れました", "রোবটের সংযোগ বিচ্ছিন্ন"],
  ["the robot is silent", "ロボットが応答しません", "রোবট সাড়া দিচ্ছে না"],
  ["the robot started again", "ロボットが再起動しました", "রোবট আবার চালু হয়েছে"],
  ["the guard keeps the arm from table or itself", "机や自分自身に当たるため止めています", "টেবিল বা নিজের সঙ্গে ধাক্কা এড়াতে আটকানো হয়েছে"],
  ["waits for a leader", "", ""], ["catches up with the leader", "", ""],
  ["stopped by", "停止ボタンが押されました", "থামানোর বোতাম চাপা হয়েছে"],
];

let language = "en";

export function choose(wanted) {
  language = WORDS[wanted] ? wanted : "en";
  document.documentElement.lang = language;
  for (const one of document.querySelectorAll("[data-word]")) one.textContent = say(one.dataset.word);
  for (const one of document.querySelectorAll("[data-label]")) one.setAttribute("aria-label", say(one.dataset.label));
  document.title = say("title");
}

export function preferred() {
  return (navigator.languages || []).map((tag) => tag.slice(0, 2)).find((tag) => WORDS[tag]) || "en";
}

export function say(key, values = {}) {
  return (WORDS[language][key] ?? WORDS.en[key] ?? key).replace(/\{(\w+)\}/g, (_, name) => values[name] ?? "");
}

export function explain(reason) {
  const found = REASONS.find(([begin]) => reason.startsWith(begin));
  if (found && !found[1]) return "";
  return !found || language === "en" ? reason : found[language === "ja" ? 1 : 2];
}
