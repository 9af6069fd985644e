// Puts the page together.

import { byId } from "./dom.js";
import { Chat } from "./chat/chat.js";
import { Monitor } from "./chat/monitor.js";
import { Server } from "./chat/server.js";
import { Settings } from "./chat/settings.js";
import { Store } from "./chat/store.js";
import { Composer } from "./view/composer.js";
import { makeGreeting } from "./view/greeting.js";
import { Header } from "./view/header.js";
import { SettingsDialog } from "./view/settings.js";
import { makeShortcuts } from "./view/shortcuts.js";
import { Sidebar } from "./view/sidebar.js";
import { Thread } from "./view/thread.js";

const settings = new Settings();
const server = new Server(settings);
const monitor = new Monitor(server);
const store = new Store();
const chat = new Chat({ store, server, settings, monitor });

const greeting = makeGreeting(monitor, (text) => composer.write(text));
const thread = new Thread(chat, greeting);
const composer = new Composer({ chat, settings, monitor, thread });
const openSettings = () => dialog.open();
const openShortcuts = makeShortcuts({ chat, thread, sidebar: () => sidebar, settings: () => dialog });
const sidebar = new Sidebar({ chat, settings, openSettings, openShortcuts });
new Header({ chat, settings, monitor, sidebar, openSettings });
const dialog = new SettingsDialog({ chat, settings, monitor });
sidebar.place();

function showProblem() {
  const notice = byId("notice");
  notice.hidden = !store.problem;
  notice.textContent = `Conversations are not kept: ${store.problem}. Save what you need as a file before you close this page.`;
}

store.addEventListener("problem", showProblem);

// The address names the conversation, so that it is there again after a reload, and "back" works.
chat.addEventListener("open", address);
chat.addEventListener("path", address);

function address() {
  const wanted = chat.record ? `#${chat.record.id}` : "";
  if (location.hash === wanted) return;
  const url = `${location.pathname}${location.search}${wanted}`;
  history.pushState(null, "", url);
}

document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  byId("text").focus();
});
addEventListener("popstate", () => chat.open(location.hash.slice(1) || null));

monitor.check();
await store.open();
await chat.refresh();
// Somebody may have asked already, where the browser took its time.
if (!chat.record) await chat.open(location.hash.slice(1) || null);
// A phone's keyboard would cover half of the page.
if (matchMedia("(pointer: fine)").matches) byId("text").focus();
document.documentElement.dataset.ready = "";
