// What is set for all conversations: sampling, thinking, the key, appearance. Kept in the browser.

const KEY = "infinicore_infer.settings";
const SECRET = "infinicore_infer.key";

/** Fields of sampling: name, label, least, most, step, what it is. Empty: not sent. */
export const FIELDS = [
  ["temperature", "Temperature", 0, 2, 0.05, "How freely it chooses; 0 always takes the likeliest token"],
  ["top_p", "Top p", 0.01, 1, 0.01, "Only the likeliest tokens that have this probability together"],
  ["top_k", "Top k", 0, 1000, 1, "Only so many of the likeliest tokens; 0: all"],
  ["min_p", "Min p", 0, 1, 0.01, "Only tokens with this part of the likeliest one's probability"],
  ["presence_penalty", "Presence penalty", -2, 2, 0.1, "Against words that have come before; helps against loops"],
  ["frequency_penalty", "Frequency penalty", -2, 2, 0.1, "Against words, the more often they have come"],
  ["repetition_penalty", "Repetition penalty", 0.01, 2, 0.01, "Against all tokens that have come before; 1: none"],
  ["seed", "Seed", 0, 2 ** 31, 1, "The same seed gives the same answer"],
];

const THINKING = { temperature: 0.6, top_p: 0.95, top_k: 20, min_p: 0 };
const PLAIN = { temperature: 0.7, top_p: 0.8, top_k: 20, min_p: 0 };

/** Presets, as Qwen3's model cards publish them. */
export const PRESETS = {
  auto: { label: "Qwen3’s, by whether it thinks", values: null },
  thinking: { label: "Qwen3’s for thinking", values: THINKING },
  plain: { label: "Qwen3’s for no thinking", values: PLAIN },
  model: { label: "The model’s own defaults", values: {} },
  custom: { label: "My own", values: null },
};

const DEFAULTS = {
  preset: "auto",
  custom: {},
  think: true,
  thinking_budget: null,
  max_tokens: null,
  system: "",
  theme: "system",
  sidebar: true,
  rememberKey: false,
};

function read(storage, key) {
  try {
    return storage().getItem(key);
  } catch {
    return null;
  }
}

function write(storage, key, value) {
  try {
    if (value === null) storage().removeItem(key);
    else storage().setItem(key, value);
  } catch {
    // Storage is forbidden or full: it then holds until the page is closed.
  }
}

const local = () => localStorage;
const session = () => sessionStorage;

export class Settings extends EventTarget {
  constructor() {
    super();
    this.key = read(session, SECRET) ?? read(local, SECRET) ?? "";
    this.#load(read(local, KEY));
    addEventListener("storage", (event) => {
      if (event.key !== KEY) return;
      this.#load(event.newValue);
      this.dispatchEvent(new Event("change"));
    });
  }

  #load(text) {
    let kept = {};
    try {
      kept = JSON.parse(text ?? "{}") ?? {};
    } catch {
      // Damaged: begin anew.
    }
    this.values = { ...DEFAULTS };
    for (const name of Object.keys(DEFAULTS))
      if (kept[name] !== undefined && (DEFAULTS[name] === null || typeof kept[name] === typeof DEFAULTS[name]))
        this.values[name] = kept[name];
    if (!PRESETS[this.values.preset]) this.values.preset = DEFAULTS.preset;
  }

  /** Change some values, and keep them. */
  set(changes) {
    Object.assign(this.values, changes);
    write(local, KEY, JSON.stringify(this.values));
    this.dispatchEvent(new Event("change"));
  }

  /** Set the key, for this tab or for later visits too. */
  setKey(key, remember) {
    this.key = key;
    write(session, SECRET, key || null);
    write(local, SECRET, remember && key ? key : null);
    this.set({ rememberKey: remember });
  }

  /** Return the values of sampling that are in force. */
  sampling() {
    const { preset, think, custom } = this.values;
    if (preset === "custom") return { ...custom };
    if (preset === "auto") return { ...(think ? THINKING : PLAIN) };
    return { ...PRESETS[preset].values };
  }

  /** Return the fields of a request that come from here. */
  request() {
    const { think, thinking_budget, max_tokens } = this.values;
    const fields = { ...this.sampling(), chat_template_kwargs: { enable_thinking: think } };
    if (max_tokens !== null) fields.max_tokens = max_tokens;
    if (think && thinking_budget !== null) fields.thinking_budget = thinking_budget;
    return fields;
  }
}
