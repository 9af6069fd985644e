// The names of characters that models write; others stay as they are written.
export const ENTITIES = Object.assign(Object.create(null), {
  amp: "&", lt: "<", gt: ">", quot: '"', apos: "'", nbsp: "\u00a0", shy: "\u00ad",
  hellip: "…", mdash: "—", ndash: "–", lsquo: "‘", rsquo: "’", ldquo: "“", rdquo: "”", laquo: "«", raquo: "»",
  bull: "•", middot: "·", copy: "©", reg: "®", trade: "™", deg: "°", para: "¶", sect: "§",
  times: "×", divide: "÷", plusmn: "±", minus: "−", radic: "√", infin: "∞", asymp: "≈", ne: "≠", equiv: "≡",
  le: "≤", ge: "≥", sum: "∑", prod: "∏", int: "∫", part: "∂", nabla: "∇", isin: "∈", notin: "∉", empty: "∅",
  cap: "∩", cup: "∪", sub: "⊂", sup: "⊃", forall: "∀", exist: "∃", and: "∧", or: "∨", not: "¬",
  larr: "←", uarr: "↑", rarr: "→", darr: "↓", harr: "↔", rArr: "⇒", lArr: "⇐", hArr: "⇔",
  frac12: "½", frac14: "¼", frac34: "¾", sup1: "¹", sup2: "²", sup3: "³", micro: "µ",
  alpha: "α", beta: "β", gamma: "γ", delta: "δ", epsilon: "ε", theta: "θ", lambda: "λ", mu: "μ", pi: "π",
  rho: "ρ", sigma: "σ", tau: "τ", phi: "φ", omega: "ω", Delta: "Δ", Sigma: "Σ", Omega: "Ω",
  euro: "€", pound: "£", yen: "¥", cent: "¢", lbrace: "{", rbrace: "}", lbrack: "[", rbrack: "]", lowbar: "_",
  ast: "*", num: "#", vert: "|", grave: "`", sol: "/", bsol: "\\", colon: ":", semi: ";", comma: ",",
});
