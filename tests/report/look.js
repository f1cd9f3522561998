// What an eye sees of a page: texts that are too faint for what is behind them, and words of drawings that overlap.
window.look = (() => {
  const numbers = (colour) => {
    const found = colour.match(/[\d.]+/g).map(Number);
    return [...found.slice(0, 3), found.length > 3 ? found[3] : 1];
  };
  const over = (top, below) => [0, 1, 2].map((i) => top[i] * top[3] + below[i] * (1 - top[3]));
  const light = (colour) => {
    const [r, g, b] = colour.map((c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ratio = (a, b) => {
    const [high, low] = [light(a), light(b)].sort((x, y) => y - x);
    return (high + 0.05) / (low + 0.05);
  };
  const line = (node) => {
    const found = [];
    for (let at = node; at; at = at.parentElement) found.push(at);
    return found;
  };
  /** The colour behind an element, and how opaque it is with all that it stands in. */
  function behind(node) {
    let below = [255, 255, 255];
    let opacity = 1;
    for (const at of line(node).reverse()) {
      const style = getComputedStyle(at);
      opacity *= Number(style.opacity);
      below = over(numbers(style.backgroundColor), below);
    }
    return [below, opacity];
  }
  function elements() {
    const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    const found = new Set();
    while (walk.nextNode()) {
      const node = walk.currentNode.parentElement;
      if (!walk.currentNode.data.trim() || node.closest("script, style, noscript, option")) continue;
      if (node.checkVisibility({ visibilityProperty: true }) && node.getClientRects().length) found.add(node);
    }
    return [...found];
  }
  /** Texts below 4.5 to 1, large ones below 3 to 1 (WCAG 2.2, success criterion 1.4.3). */
  function faint() {
    return elements()
      .map((node) => {
        const style = getComputedStyle(node);
        const drawn = node.namespaceURI.endsWith("svg");
        const [below, opacity] = behind(node);
        const ink = numbers(drawn ? style.fill : style.color);
        const size = parseFloat(style.fontSize);
        const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
        const reached = ratio(over([...ink.slice(0, 3), ink[3] * opacity], below), below);
        return reached < (large ? 3 : 4.5) ? `${reached.toFixed(2)} ${node.textContent.trim().slice(0, 40)}` : null;
      })
      .filter(Boolean);
  }
  function overlaps() {
    const found = [];
    for (const plot of document.querySelectorAll(".plot")) {
      const boxes = [...plot.querySelectorAll("text")].map((t) => [t.textContent, t.getBoundingClientRect()]);
      boxes.forEach(([a, p], i) =>
        boxes.slice(i + 1).forEach(([b, q]) => {
          const [x, y] = [Math.min(p.right, q.right) - Math.max(p.left, q.left),
            Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top)];
          if (x > 1 && y > 4) found.push(`${plot.getAttribute("aria-label")}: ${a} on ${b}`);
        }),
      );
    }
    return found;
  }
  return { faint, overlaps, texts: () => elements().length };
})();
