"use strict";
(() => {
  // Tooltips: SVG <title> without this script; a quick one that follows the pointer with it.
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.hidden = true;
  document.body.append(tip);
  const texts = new WeakMap();
  for (const title of document.querySelectorAll("svg [data-tip] > title")) {
    const owner = title.parentNode;
    texts.set(owner, title.textContent);
    owner.setAttribute("aria-label", title.textContent);
    title.remove();
  }
  const light = (owner, on) => {
    owner.classList.toggle("lit", on);
    const name = owner.dataset.name;
    if (name === undefined) return;
    for (const twin of document.querySelectorAll("[data-name]"))
      if (twin.dataset.name === name) twin.classList.toggle("lit", on);
  };
  const show = (owner, x, y) => {
    const text = texts.get(owner);
    if (text !== undefined) {
      tip.textContent = text;
      tip.hidden = false;
      const box = tip.getBoundingClientRect();
      tip.style.left = Math.max(6, Math.min(x + 14, innerWidth - box.width - 6)) + "px";
      tip.style.top = (y + 18 + box.height > innerHeight ? y - box.height - 10 : y + 18) + "px";
    }
    light(owner, true);
  };
  const hide = (owner) => { tip.hidden = true; light(owner, false); };
  for (const owner of document.querySelectorAll("[data-tip], tr[data-name]")) {
    owner.addEventListener("pointerenter", (event) => show(owner, event.clientX, event.clientY));
    owner.addEventListener("pointermove", (event) => show(owner, event.clientX, event.clientY));
    owner.addEventListener("pointerleave", () => hide(owner));
    owner.addEventListener("focus", () => {
      const box = owner.getBoundingClientRect();
      show(owner, box.right, box.bottom - 18);
    });
    owner.addEventListener("blur", () => hide(owner));
  }

  // Tables sort by a click on a heading; cells without a value stay last.
  for (const button of document.querySelectorAll("th button")) {
    button.addEventListener("click", () => {
      const head = button.closest("th");
      const body = head.closest("table").tBodies[0];
      const column = head.cellIndex;
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const value = (row) => row.cells[column].dataset.value ?? "";
      const sorted = [...body.rows].sort((a, b) => {
        const [x, y] = [value(a), value(b)];
        if (x === "" || y === "") return (x === "") - (y === "");
        const order = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
        return down ? -order : order;
      });
      body.append(...sorted);
    });
  }

  for (const button of document.querySelectorAll("button.copy")) {
    button.hidden = !navigator.clipboard;
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText(button.parentNode.querySelector("pre").textContent);
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    });
  }
})();
