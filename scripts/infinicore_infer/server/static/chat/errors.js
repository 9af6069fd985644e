// What can go wrong with the server, in words.

/** kind: gone, loading, draining, key, full, context, refused, failed, late, broken. */
export class ServerError extends Error {
  constructor(kind, message, status = 0, retryAfter = 0) {
    super(message);
    this.kind = kind;
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

const CODES = { loading: "loading", draining: "draining", context_length_exceeded: "context" };
const STATUSES = { 401: "key", 403: "refused", 429: "full", 502: "gone", 504: "late" };

/** Return the error that a response is. */
export async function errorOf(response) {
  const text = await response.text().catch(() => "");
  let error = {};
  try {
    error = JSON.parse(text).error ?? {};
  } catch {
    // A proxy's page, for one.
  }
  const { status } = response;
  const kind = CODES[error.code] ?? STATUSES[status] ?? (status >= 500 ? "failed" : "refused");
  const message = error.message ?? text.slice(0, 300) ?? "";
  return new ServerError(kind, message, status, Number(response.headers.get("Retry-After")) || 0);
}

const WORDS = {
  gone: "The server cannot be reached. It may have been stopped, or the network is down.",
  loading: "The server is still loading the model.",
  draining: "The server is shutting down and takes no more questions.",
  key: "The server asks for an API key. Enter it in the settings.",
  full: "The server has as many questions as it takes. Try again in a moment.",
  context: "The conversation is longer than the model can read. Begin a new one, or shorten it.",
  refused: "The server did not accept the question.",
  failed: "The server failed to compute the answer.",
  late: "The server gave up: the answer took longer than it allows.",
  broken: "The connection broke off before the answer was complete.",
  closed: "The page was closed while this answer was being written.",
  empty: "The model ended without writing anything.",
};

/** Return {kind, text, detail} of an error. */
export function inWords(error) {
  if (!(error instanceof ServerError))
    return { kind: "failed", text: "Something went wrong in this page.", detail: String(error?.message ?? error) };
  const detail = error.message && error.status ? `${error.status}: ${error.message}` : error.message;
  return { kind: error.kind, text: WORDS[error.kind], detail };
}

export const wordsOf = (kind) => WORDS[kind] ?? WORDS.failed;
