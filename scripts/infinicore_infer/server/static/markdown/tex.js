// The part of TeX that models write, as data: what each command is. See formula.js.

/** Letters and signs that stand for themselves. */
export const SYMBOLS = Object.assign(Object.create(null), {
  alpha: "α", beta: "β", gamma: "γ", delta: "δ", epsilon: "ϵ", varepsilon: "ε", zeta: "ζ", eta: "η", theta: "θ", vartheta: "ϑ",
  iota: "ι", kappa: "κ", lambda: "λ", mu: "μ", nu: "ν", xi: "ξ", pi: "π", rho: "ρ", sigma: "σ", tau: "τ", upsilon: "υ", phi: "ϕ",
  varphi: "φ", chi: "χ", psi: "ψ", omega: "ω", Gamma: "Γ", Delta: "Δ", Theta: "Θ", Lambda: "Λ", Xi: "Ξ", Pi: "Π", Sigma: "Σ",
  Phi: "Φ", Psi: "Ψ", Omega: "Ω", ell: "ℓ", hbar: "ℏ", infty: "∞", partial: "∂", nabla: "∇", emptyset: "∅", Re: "ℜ", Im: "ℑ",
  aleph: "ℵ", degree: "°", prime: "′",
});

export const OPERATORS = Object.assign(Object.create(null), {
  times: "×", cdot: "⋅", div: "÷", pm: "±", mp: "∓", ast: "∗", star: "⋆", circ: "∘", bullet: "∙", oplus: "⊕", otimes: "⊗",
  le: "≤", leq: "≤", ge: "≥", geq: "≥", ne: "≠", neq: "≠", approx: "≈", equiv: "≡", sim: "∼", simeq: "≃", cong: "≅", propto: "∝",
  ll: "≪", gg: "≫", lt: "<", gt: ">", in: "∈", notin: "∉", ni: "∋", subset: "⊂", subseteq: "⊆", supset: "⊃", supseteq: "⊇",
  cup: "∪", cap: "∩", setminus: "∖", wedge: "∧", land: "∧", vee: "∨", lor: "∨", neg: "¬", lnot: "¬", forall: "∀", exists: "∃",
  to: "→", rightarrow: "→", leftarrow: "←", leftrightarrow: "↔", Rightarrow: "⇒", Leftarrow: "⇐", Leftrightarrow: "⇔",
  implies: "⟹", iff: "⟺", mapsto: "↦", longrightarrow: "⟶", uparrow: "↑", downarrow: "↓", mid: "∣", vert: "|", Vert: "‖",
  parallel: "∥", perp: "⊥", angle: "∠", triangle: "△", dots: "…", ldots: "…", cdots: "⋯", vdots: "⋮", ddots: "⋱", colon: ":",
  therefore: "∴", because: "∵", langle: "⟨", rangle: "⟩", lfloor: "⌊", rfloor: "⌋", lceil: "⌈", rceil: "⌉", lbrace: "{", rbrace: "}",
  "{": "{", "}": "}", "|": "‖", "%": "%", "#": "#", "&": "&", _: "_", $: "$",
});

/** Signs whose bounds are above and below them in displayed formulas. */
export const LARGE = Object.assign(Object.create(null), {
  sum: "∑", prod: "∏", int: "∫", iint: "∬", iiint: "∭", oint: "∮", bigcup: "⋃", bigcap: "⋂", bigoplus: "⨁", bigwedge: "⋀", bigvee: "⋁",
});

/** Names that are written upright; those in the second set take their bounds as sums do. */
export const NAMES = new Set(
  "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln lg exp det dim ker deg arg gcd hom Pr lim max min sup inf argmax argmin".split(" "),
);
export const BOUNDED = new Set("lim max min sup inf det gcd Pr argmax argmin".split(" "));

export const SPACES = Object.assign(Object.create(null), {
  ",": "0.17em", ":": "0.22em", ";": "0.28em", "!": "-0.17em", " ": "0.25em", quad: "1em", qquad: "2em", enspace: "0.5em", thinspace: "0.17em",
});

export const ACCENTS = Object.assign(Object.create(null), {
  hat: "^", widehat: "^", bar: "‾", overline: "‾", tilde: "~", widetilde: "~", vec: "→", overrightarrow: "→", dot: "˙", ddot: "¨", overbrace: "⏞",
});

/** Styles of letters, and where such letters begin among Unicode's: capitals and small ones. */
export const FONTS = Object.assign(Object.create(null), {
  mathrm: null, text: null, textrm: null, operatorname: null, "operatorname*": null, mathit: null, textit: null, mathsf: null, texttt: null, mathtt: null, boldsymbol: "bold",
  mathbf: "bold", textbf: "bold", mathbb: "double", mathcal: "script",
});

/** What changes only the look of the formula around it, and is left out. */
export const IGNORED = new Set("displaystyle textstyle scriptstyle limits nolimits big Big bigg Bigg bigl bigr Bigl Bigr biggl biggr Biggl Biggr".split(" "));

/** Environments that are tables, and the brackets around them. */
export const TABLES = Object.assign(Object.create(null), {
  matrix: ["", ""], pmatrix: ["(", ")"], bmatrix: ["[", "]"], Bmatrix: ["{", "}"], vmatrix: ["|", "|"], Vmatrix: ["‖", "‖"], cases: ["{", ""],
  aligned: ["", ""], align: ["", ""], "align*": ["", ""], gathered: ["", ""], array: ["", ""], split: ["", ""],
});
