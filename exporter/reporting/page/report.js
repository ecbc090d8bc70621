// Draws every figure in the colours that the reader's system asks for, and again when these or the width change class.
"use strict";
const specifications = JSON.parse(document.getElementById("specifications").textContent);
const themes = JSON.parse(document.getElementById("themes").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");
const narrow = matchMedia("(max-width: 600px)");
let views = {};

async function draw() {
  const theme = themes[dark.matches ? "dark" : "light"];
  const legend = { ...theme.legend, columns: narrow.matches ? 1 : 3 };
  for (const [id, specification] of Object.entries(specifications)) {
    if (views[id]) views[id].finalize();
    // ast: expressions are interpreted, so that the page needs no permission to run text as code.
    views[id] = await vegaEmbed(document.getElementById(id), specification, {
      mode: "vega-lite", renderer: "svg", actions: false, ast: true, config: { ...theme, legend },
      tooltip: { theme: dark.matches ? "dark" : "light" },
    });
  }
}

// What the views hold and where they drew it, for tests: report.html#plotted
function plotted() {
  const found = {};
  for (const [id, { view }] of Object.entries(views)) {
    const marks = [];
    const visit = (item, mark) => {
      if (item.items) item.items.forEach((each) => visit(each, item));
      else if (item.datum && ["line", "symbol", "rect"].includes(mark.marktype) && mark.role === "mark")
        marks.push({ type: mark.marktype, x: item.x, y: item.y, datum: item.datum });
    };
    visit(view.scenegraph().root, null);
    const scales = {};
    for (const name of ["x", "y"]) {
      const scale = view.scale(name);
      scales[name] = { type: scale.type, domain: scale.domain(), range: scale.range() };
    }
    found[id] = { rows: view.data("rows"), marks, scales };
  }
  return found;
}

function report() {
  if (location.hash !== "#plotted") return;
  const element = document.createElement("script");
  element.type = "application/json";
  element.id = "plotted";
  element.textContent = JSON.stringify(plotted()).replaceAll("<", "\\u003c");
  document.body.append(element);
}

let last = Promise.resolve();
const again = () => { last = last.then(draw); return last; };
dark.addEventListener("change", again);
narrow.addEventListener("change", again);
again().then(report);
