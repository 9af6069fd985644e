// One answer while it is being written.

import { ServerError, inWords } from "./errors.js";

/** Return the message with which a conversation is asked to go on from, for the server. */
function openEnded(message) {
  if (message.content) return { role: "assistant", content: message.content, reasoning_content: message.thinking };
  // Amid its thinking: the model goes on in it.
  return { role: "assistant", content: null, reasoning_content: message.thinking };
}

/** Return the messages of a request: what the page shows, without earlier thinking, which the template drops. */
export function requestMessages(system, path, goesOn) {
  const messages = system.trim() ? [{ role: "system", content: system }] : [];
  for (const message of path) {
    if (message === path.at(-1) && goesOn) messages.push(openEnded(message));
    else if (message.content) messages.push({ role: message.role, content: message.content });
  }
  return messages;
}

export class Answer {
  #controller = new AbortController();
  #begin = performance.now();
  #thinkingSince = 0;
  #first = 0;
  #pieces = 0;
  #ended = false;

  /** @param {object} message to be filled; what it holds already is kept, and gone on from */
  constructor(message) {
    this.message = message;
    this.before = { ...message.stats };
    Object.assign(message, { state: "writing", error: null });
  }

  stop() {
    this.#controller.abort();
  }

  /** Have it written; `tell` is called with every piece. Never throws: what goes wrong is in the message. */
  async run(server, body, tell) {
    const { message } = this;
    try {
      for await (const event of server.chat(body, this.#controller.signal)) {
        this.#take(event);
        tell();
      }
      if (!this.#ended) throw new ServerError("broken", "");
      if (!message.content && !message.thinking) throw new ServerError("empty", "");
    } catch (error) {
      if (this.#controller.signal.aborted) message.state = "stopped";
      else Object.assign(message, { state: "failed", error: inWords(error) });
    }
    if (message.state === "writing") message.state = "done";
    this.#count();
    this.#endThinking();
    tell();
  }

  #take(event) {
    const { message } = this;
    const choice = event.choices?.[0];
    const { content, reasoning_content: thinking } = choice?.delta ?? {};
    if (thinking) {
      this.#thinkingSince ||= performance.now();
      message.thinking += thinking;
    }
    if (content) {
      this.#endThinking();
      message.content += content;
    }
    if (content || thinking) {
      this.#first ||= performance.now();
      this.#pieces++;
      this.#count();
    }
    if (choice?.finish_reason) this.#ended = true;
    if (choice?.finish_reason === "length") message.state = "cut";
    if (choice?.finish_reason === "repetition") message.state = "repeating";
    if (event.usage) this.#exact(event.usage, event.timings);
    else if (event.timings) this.timings = event.timings;
  }

  #endThinking() {
    if (!this.#thinkingSince) return;
    const { stats } = this.message;
    stats.thinkMs = (this.before.thinkMs ?? 0) + performance.now() - this.#thinkingSince;
    this.#thinkingSince = 0;
  }

  /** Estimate while it is written: an event is about a token. */
  #count() {
    const { stats } = this.message;
    if (this.#first) stats.firstMs = this.before.firstMs ?? this.#first - this.#begin;
    if (this.#thinkingSince) stats.thinkMs = (this.before.thinkMs ?? 0) + performance.now() - this.#thinkingSince;
    if (this.exact) return;
    const seconds = (performance.now() - this.#first) / 1000;
    stats.tokens = (this.before.tokens ?? 0) + this.#pieces;
    if (this.#pieces > 4 && seconds > 0.3) stats.perSecond = (this.#pieces - 1) / seconds;
  }

  #exact(usage, timings = this.timings) {
    const { stats } = this.message;
    this.exact = true;
    stats.tokens = (this.before.tokens ?? 0) + usage.completion_tokens;
    stats.used = usage.total_tokens;
    stats.cached = usage.prompt_tokens_details?.cached_tokens ?? 0;
    stats.prompt = usage.prompt_tokens;
    if (timings?.predicted_per_second) stats.perSecond = timings.predicted_per_second;
  }
}
