"use strict";
(() => {
  const root = document.documentElement;
  const systemDark = window.matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => root.dataset.theme === "dark" || (root.dataset.theme === "auto" && systemDark.matches);
  const PRINT_WIDTH = 690;
  let printing = false;

  /* figures: the look of the page is laid over their template, then all are drawn, those in sight first */
  const plots = new Map();
  for (const script of document.querySelectorAll("script[data-for]")) {
    plots.set(document.getElementById(script.dataset.for), JSON.parse(script.textContent));
  }
  const look = () => {
    const style = getComputedStyle(root);
    const value = (name) => style.getPropertyValue(name).trim();
    const dark = isDark() && !printing;
    const axis = {
      gridcolor: dark ? "#2a303a" : "#e8ebef", linecolor: dark ? "#4a5260" : "#b9c0c9", tickcolor: dark ? "#4a5260" : "#b9c0c9",
    };
    return {
      ink: value("--ink"), soft: value("--soft"), axis,
      hover: { bgcolor: dark ? "#262c36" : "#ffffff", bordercolor: axis.linecolor, font: { color: value("--ink"), size: 12 } },
    };
  };
  const themed = (layout, node) => {
    const { ink, soft, axis, hover } = look();
    const template = structuredClone(layout.template);
    Object.assign(template.layout.font, { color: ink });
    template.layout.hoverlabel = { ...template.layout.hoverlabel, ...hover, font: { ...template.layout.hoverlabel.font, ...hover.font } };
    Object.assign(template.layout.xaxis, axis, { tickfont: { size: 12, color: soft } });
    Object.assign(template.layout.yaxis, axis, { tickfont: { size: 12, color: soft } });
    return { ...layout, template, autosize: true, height: node.clientHeight, width: printing ? PRINT_WIDTH : undefined };
  };
  const CONFIG = {
    displaylogo: false, responsive: true, displayModeBar: "hover",
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"], toImageButtonOptions: { scale: 2 },
  };
  const draw = (node) => {
    const figure = plots.get(node);
    return Plotly.react(node, figure.data, themed(structuredClone(figure.layout), node), CONFIG).then(() => node.classList.add("drawn"));
  };
  const visible = (node) => !node.closest("[hidden]");
  const drawAll = () => Promise.all([...plots.keys()].filter(visible).map(draw));
  const later = window.requestIdleCallback || ((done) => setTimeout(done, 0));
  const inTurn = async () => {
    for (const node of plots.keys()) {
      if (!visible(node)) continue;
      await new Promise((done) => later(done, { timeout: 200 }));
      await draw(node);
    }
    root.dataset.drawn = "true";
  };

  /* light and dark */
  const restyle = () => { drawAll(); };
  systemDark.addEventListener("change", restyle);
  document.getElementById("theme").addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    restyle();
  });

  /* print: white, and as wide as the paper */
  window.addEventListener("beforeprint", () => { printing = true; drawAll(); });
  window.addEventListener("afterprint", () => { printing = false; drawAll(); });

  /* which run is shown */
  for (const button of document.querySelectorAll(".choices button")) {
    button.addEventListener("click", () => {
      const run = button.dataset.run;
      for (const other of document.querySelectorAll(".choices button")) {
        other.setAttribute("aria-pressed", String(other.dataset.run === run));
      }
      for (const figure of document.querySelectorAll("figure[data-run]")) figure.hidden = figure.dataset.run !== run;
      for (const node of plots.keys()) if (visible(node) && !node.classList.contains("drawn")) draw(node);
    });
  }

  /* sorting: by the value behind a cell; a second click turns the order round; empty cells stay last */
  const compare = (a, b) => {
    const [x, y] = [Number(a), Number(b)];
    return Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b, "en", { numeric: true }) : x - y;
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => head.addEventListener("click", () => {
      const first = head.classList.contains("number") ? "descending" : "ascending";
      const other = first === "ascending" ? "descending" : "ascending";
      const order = head.getAttribute("aria-sort") === first ? other : first;
      for (const each of heads) each.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", order);
      const rows = [...table.tBodies[0].rows];
      const value = (row) => row.cells[column].dataset.value;
      rows.sort((a, b) => {
        const [x, y] = [value(a), value(b)];
        if (x === "" || y === "") return (x === "") - (y === "");
        return compare(x, y) * (order === "ascending" ? 1 : -1);
      });
      table.tBodies[0].append(...rows);
    }));
  }

  for (const button of document.querySelectorAll(".copy")) {
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText(button.parentElement.querySelector("code").textContent);
      button.textContent = "copied";
      setTimeout(() => { button.textContent = "copy"; }, 1500);
    });
  }

  inTurn();
})();
