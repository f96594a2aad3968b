// Brings the page up to date every few seconds while it is in sight. The server writes the page's parts; what has not
// changed is left alone, so that nothing flickers, and a selection or the keyboard's place stays.
"use strict";

const SECONDS = 5;
const pipelines = document.getElementById("pipelines");
const lost = document.getElementById("lost");

function show(html) {
  const next = document.createElement("template");
  next.innerHTML = html;
  const wanted = [...next.content.children];
  const focused = document.activeElement?.id;
  wanted.forEach((element, place) => {
    const shown = pipelines.children[place];
    if (!shown) pipelines.append(element);
    else if (shown.outerHTML !== element.outerHTML) shown.replaceWith(element);
  });
  while (pipelines.children.length > wanted.length) pipelines.lastElementChild.remove();
  if (focused && document.activeElement?.id !== focused) document.getElementById(focused)?.focus();
}

async function refresh() {
  if (document.hidden) return;
  try {
    const answer = await fetch("status.json", { signal: AbortSignal.timeout(2000 * SECONDS) });
    if (!answer.ok) throw new Error(answer.statusText);
    show((await answer.json()).html);
    lost.hidden = true;
  } catch {
    lost.hidden = false;
  }
}

async function keep() {
  await refresh();
  setTimeout(keep, 1000 * SECONDS);
}

setTimeout(keep, 1000);
document.addEventListener("visibilitychange", refresh);
