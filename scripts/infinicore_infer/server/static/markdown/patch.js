/** Change an element into another one, keeping what is equal, so that a selection or focus stays. */
export function patch(old, made) {
  if (old.nodeType !== made.nodeType || old.nodeName !== made.nodeName) {
    old.replaceWith(made);
    return made;
  }
  if (old.nodeType !== Node.ELEMENT_NODE) {
    if (old.data !== made.data) growText(old, made.data);
    return old;
  }
  for (const { name } of [...old.attributes]) if (!made.hasAttribute(name)) old.removeAttribute(name);
  for (const { name, value } of made.attributes)
    if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  const [olds, mades] = [[...old.childNodes], [...made.childNodes]];
  mades.forEach((node, i) => {
    if (i < olds.length) patch(olds[i], node);
    else old.append(node);
  });
  for (const node of olds.slice(mades.length)) node.remove();
  return old;
}

function growText(node, data) {
  if (data.startsWith(node.data)) node.appendData(data.slice(node.data.length));
  else node.data = data;
}
