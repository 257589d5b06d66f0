#!/usr/bin/env node
/**
 * Follow a PyPubSub server, and publish to it: one file to copy into a program of your own.
 * Needs Node.js 20 or later, and nothing else.
 *
 *     const { listen, publish } = require('./client.js');
 *
 *     for await (const event of listen('https://pubsub.example.org/fruits')) {
 *       console.log(event.pubsub_path, event);
 *     }
 *
 *     const cursor = await publish('https://pubsub.example.org/fruits/apples', { colour: 'red' });
 *
 * The same from a shell, one event a line:
 *
 *     node client.js https://pubsub.example.org/fruits
 *     node client.js publish https://pubsub.example.org/fruits/apples '{"colour": "red"}'
 *
 * A server's stream has no end of its own: whatever ends it, listen() says so in the log, connects again, and asks
 * for what was published meanwhile.
 */
'use strict';

const { randomUUID } = require('node:crypto');
const fs = require('node:fs');
const http = require('node:http');
const https = require('node:https');
const path = require('node:path');
const { once } = require('node:events');
const { setTimeout: sleep } = require('node:timers/promises');
const { parseArgs, promisify } = require('node:util');

const CURSOR = /^[0-9A-Za-z-]{36}$/;
// What a server's verdict on a replay says about the events published since.
const MISSING = {
  partial: 'events of the time away are missing',
  unknown: 'the server cannot tell whether events are missing',
  none: 'the server keeps no backlog, or does not tell: events of the time away may be missing',
};
const TRY_AGAIN = [null, 429, 502, 503, 504]; // after such a status the same event may be accepted; null: no answer
const MAX_LINE_BYTES = 16 * 1024 * 1024; // far above a server's limit (600,000): a guard against what is no PyPubSub
const READ_AHEAD_BYTES = 1024 * 1024; // taken off the network while the consumer is busy
const PIECE_COST = 256; // bytes that a piece, however small, takes beside its content
const MAX_TEXT = 1000; // characters of what a server says that go into an error
const STEADY = 10; // seconds; the end of a stream that lived for less is a failure like a refusal
const LONGEST_WISH = 86400; // seconds; no Retry-After is taken for more

/** The server answered a GET with something other than 200. */
class Refused extends Error {
  constructor(status, text, retryAfter) {
    super(`refused: ${status} ${text}`.trimEnd());
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

/** An event was not accepted. `status` is the server's, or null if no answer came: it may be published then.
 * `retryAfter` is how many seconds the server asks to wait. */
class PublishError extends Error {
  constructor(status, text, retryAfter = 0) {
    super(status === null ? text : `${status} ${text}`.trimEnd());
    this.name = 'PublishError';
    this.status = status;
    this.text = text;
    this.retryAfter = retryAfter;
  }
}

/**
 * Yields the events of a URL for ever, one object each, reconnecting whenever the stream ends, and going on after
 * the event that was handled last. An event is handled when the next one is asked for.
 * Leaving the loop closes the connection; `signal` does so from outside, while the loop waits for an event.
 *
 * Options: user, password;
 *   silence     seconds without a byte after which the connection counts as dead (11; a server pings every 5);
 *   maxWait     the longest pause, in seconds, before connecting again, whatever a server asks for (60);
 *   cursor      start after it: the pubsub_cursor of an event, or what publish() gave;
 *   since       as long as there is no cursor, start with the events since then: Unix seconds, or a text that the
 *               server takes for a time;
 *   cursorFile  a path, to keep the cursor for the next run; a file that is there wins over cursor and since.
 *               It is replaced as a whole after each event: however the program ends, it is sound, and one event
 *               late at most. It is not forced onto the disk: a power cut may leave it older, or empty.
 *               It keeps its mode; of a symbolic link, the file that it leads to is replaced;
 *   onReplay    called on each connection that asked for earlier events, before these, with the server's verdict:
 *               'complete', 'partial' (some are gone), 'unknown' or 'none' (it keeps no backlog, or is too old to
 *               tell);
 *   signal      an AbortSignal; log, a function that takes a line of text (console.error).
 *
 * Throws TypeError for a cursor, or a cursor file, that holds none, and the system's error if the file cannot be used:
 * before anything is asked of the server, unless the file becomes useless later.
 */
async function* listen(url, options = {}) {
  for await (const { event } of follow(url, options)) {
    yield event;
  }
}

/** As listen(), but yields { event, line }, line being the event's own JSON: an object here holds numbers with
 * 53 bits only, so a program that hands on larger ones, or brings a parser for them, wants the text. */
async function* follow(
  url,
  { user, password, silence = 11, maxWait = 60, cursor, since, cursorFile, onReplay, signal, log = console.error } = {},
) {
  const address = splitCredentials(url, user, password);
  const position = new Position(cursor, since, cursorFile);
  let failures = 0; // in a row, since the last stream that was steady
  while (!signal?.aborted) {
    let pause;
    let began = null; // when the first line came
    let inProgram = false;
    const replay = position.headers();
    try {
      for await (const { line, head } of linesOf(address, replay, silence, signal)) {
        const event = parse(line);
        inProgram = true;
        if (began === null) {
          began = performance.now();
          log(`following ${address.url}`);
          position.atHead = head['x-cursor'];
          if (replay) {
            const verdict = head['x-replay'] ?? 'none';
            if (MISSING[verdict]) log(`${address.url}: the replay was ${verdict}: ${MISSING[verdict]}`);
            await onReplay?.(verdict);
          }
        }
        if (isPing(event)) {
          position.pinged();
        } else {
          yield { event, line };
          position.handled(event.pubsub_cursor);
        }
        inProgram = false;
      }
    } catch (error) {
      if (inProgram) throw error; // of onReplay, or of the cursor file
      if (signal?.aborted) return;
      if (began !== null && performance.now() - began >= STEADY * 1000) failures = 0;
      pause = [401, 403].includes(error.status) ? longPause(maxWait) : backoff(failures, maxWait);
      pause = Math.min(maxWait, Math.max(error.retryAfter ?? 0, pause));
      log(`${address.url}: ${textOf(error)}; again in ${pause.toFixed(2)} s`);
    }
    failures += 1;
    await sleep(pause * 1000, undefined, { signal }).catch(() => {}); // aborted: the loop ends by itself
  }
}

/**
 * Publishes one event under the topics in the path of `url`. Gives its cursor, or throws PublishError.
 * The payload is an object, or the text of one in JSON.
 *
 * Options: user, password, method ('POST'; 'PUT' is the same to a server);
 *   timeout         seconds to wait for the answer to one attempt (30);
 *   idempotencyKey  1 to 255 visible ASCII characters that name the event, for the server to publish it once however
 *                   often it comes (a random one);
 *   retryFor        seconds during which the event is sent again, with its key, after no answer and after 429, 502,
 *                   503 and 504; 0 for a single attempt (30). Over a restart of the server this is safe only if its
 *                   backlog is durable: without, it forgets the keys, and may publish the event twice;
 *   log             a function that takes a line of text (console.error).
 */
async function publish(
  url,
  payload,
  {
    user, password, method = 'POST', timeout = 30, idempotencyKey = randomUUID(), retryFor = 30, log = console.error,
  } = {},
) {
  const address = splitCredentials(url, user, password);
  const body = Buffer.from(typeof payload === 'string' ? payload : JSON.stringify(payload));
  const headers = {
    ...headersFor(address),
    'Content-Type': 'application/json',
    'Content-Length': body.length,
    'Idempotency-Key': idempotencyKey,
  };
  const end = performance.now() + retryFor * 1000;
  for (let failures = 0; ; failures += 1) {
    try {
      return await publishOnce(address.url, { method, headers, agent: false }, body, timeout);
    } catch (error) {
      const left = (end - performance.now()) / 1000;
      if (!TRY_AGAIN.includes(error.status) || left <= 0) throw error;
      const pause = Math.min(left, Math.max(error.retryAfter, backoff(failures, retryFor)));
      log(`not published: ${textOf(error)}; again in ${pause.toFixed(2)} s`);
      await sleep(pause * 1000);
    }
  }
}

/** One attempt. */
async function publishOnce(url, options, body, timeout) {
  const request = clientFor(url).request(url, options);
  const timer = setTimeout(() => request.destroy(new Error(`nothing came for ${timeout} s`)), timeout * 1000);
  request.on('error', () => {}); // once() below hears the first; a second must not end the program
  request.end(body);
  try {
    const [response] = await once(request, 'response');
    const { statusCode: status, headers } = response;
    if (status >= 200 && status <= 299) return headers['x-cursor'] ?? null;
    throw new PublishError(status, await refusalText(response), retryAfterOf(response));
  } catch (error) {
    throw error instanceof PublishError ? error : new PublishError(null, `${url}: ${textOf(error)}`);
  } finally {
    clearTimeout(timer);
    request.destroy();
  }
}

/** Seconds to wait after so many failures in a row: a random part of 1, 2, 4, 8... so that the clients of
 * a restarted server do not come back all at once. */
function backoff(failures, maxWait) {
  return Math.random() * Math.min(maxWait, 2 ** failures);
}

/** Seconds to wait after a refusal that will not go away by itself: a password or a right is missing. */
function longPause(maxWait) {
  return maxWait / 2 + (Math.random() * maxWait) / 2;
}

/** Where the program is in the stream: what comes after the cursor is what it has yet to handle. */
class Position {
  atHead; // the cursor of the moment when this connection's stream began
  #cursor;
  #since;
  #file;

  constructor(cursor, since, file) {
    if (cursor !== undefined) checkCursor(cursor, 'cursor');
    this.#file = file === undefined ? null : new CursorFile(file);
    this.#cursor = this.#file?.start() ?? cursor;
    this.#since = since;
  }

  /** What asks for a replay from there; null if there is no such place yet. */
  headers() {
    if (this.#cursor !== undefined) return { 'X-Fetch-Since-Cursor': this.#cursor };
    return this.#since === undefined ? null : { 'X-Fetch-Since': this.#since };
  }

  /** A ping came: the first one says that everything up to the stream's head has come. */
  pinged() {
    this.handled(this.atHead);
    this.atHead = undefined;
  }

  /** Everything up to this cursor is handled; nothing new if there is none, as from some servers. */
  handled(cursor) {
    if (!isCursor(cursor)) return;
    this.#cursor = cursor;
    this.#file?.save(cursor);
  }
}

/** A file that holds a cursor. A new one is written beside it and takes its place: `NAME.PID.new`.
 * The errors of its methods name it. */
class CursorFile {
  #path;
  #target; // absolute, for programs that change their directory

  constructor(file) {
    this.#path = file;
  }

  /** The cursor in it; undefined if there is no file yet. Tries whether it can be replaced, and removes what a run
   * that was killed has left beside it. */
  start() {
    const cursor = this.#naming(() => {
      this.#target = targetOf(this.#path);
      this.#removeLeftovers();
      if (fs.existsSync(this.#target)) return this.#read();
      fs.unlinkSync(this.#writeBeside(''));
      return undefined;
    });
    if (cursor === undefined) return undefined;
    checkCursor(cursor, `cursor file ${this.#path}`);
    this.save(cursor);
    return cursor;
  }

  /** Puts this cursor in the place of what is there. */
  save(cursor) {
    this.#naming(() => {
      try {
        this.#replace(cursor);
      } catch (error) {
        if (error.code !== 'ENOENT') throw error;
        this.#replace(cursor); // another run that is just starting may have taken it for a leftover
      }
    });
  }

  #naming(action) {
    try {
      return action();
    } catch (error) {
      error.message = `cursor file ${this.#path}: ${error.message}`;
      throw error;
    }
  }

  #removeLeftovers() {
    const directory = path.dirname(this.#target);
    const start = `${path.basename(this.#target)}.`;
    const isLeftover = (name) => name.startsWith(start) && /^[0-9]+\.new$/.test(name.slice(start.length));
    let names = [];
    try {
      names = fs.readdirSync(directory);
    } catch (error) {
      if (error.code !== 'EACCES') throw error; // a directory may be writable, and not readable
    }
    for (const name of names.filter(isLeftover)) fs.unlinkSync(path.join(directory, name));
  }

  #read() {
    const file = fs.statSync(this.#target);
    // A pipe would be waited for, a device replaced.
    if (!file.isFile()) throw new Error(file.isDirectory() ? 'is a directory' : 'is not a regular file');
    const start = Buffer.alloc(MAX_TEXT);
    const descriptor = fs.openSync(this.#target);
    try {
      return start.toString('utf8', 0, fs.readSync(descriptor, start)).trim();
    } finally {
      fs.closeSync(descriptor);
    }
  }

  #replace(cursor) {
    const beside = this.#writeBeside(`${cursor}\n`);
    try {
      fs.renameSync(beside, this.#target);
    } catch (error) {
      fs.rmSync(beside, { force: true });
      throw error;
    }
  }

  /** The path of a new file, of the mode of the one that is there. */
  #writeBeside(text) {
    const beside = `${this.#target}.${process.pid}.new`;
    const descriptor = fs.openSync(beside, 'wx'); // follows no link
    try {
      fs.writeFileSync(descriptor, text);
      const before = fs.statSync(this.#target, { throwIfNoEntry: false });
      if (before && before.mode !== fs.fstatSync(descriptor).mode) fs.fchmodSync(descriptor, before.mode & 0o7777);
    } catch (error) {
      fs.rmSync(beside, { force: true });
      throw error;
    } finally {
      fs.closeSync(descriptor);
    }
    return beside;
  }
}

/** The absolute path of the file that a path leads to, through any links, be it there or not. */
function targetOf(file) {
  try {
    return fs.realpathSync(file);
  } catch (error) {
    if (error.code !== 'ENOENT') throw error;
  }
  const place = path.join(fs.realpathSync(path.dirname(file)), path.basename(file));
  const isLink = fs.lstatSync(place, { throwIfNoEntry: false })?.isSymbolicLink();
  return isLink ? targetOf(path.resolve(path.dirname(place), fs.readlinkSync(place))) : place;
}

function isCursor(value) {
  return typeof value === 'string' && CURSOR.test(value);
}

function checkCursor(text, source) {
  if (isCursor(text)) return;
  throw new TypeError(`${source}: expected 36 characters of 0-9, A-Z, a-z and -, got '${String(text).slice(0, 80)}'`);
}

/** { url, user, password }: the URL without credentials, fit for a log, and those given, else those in the URL. */
function splitCredentials(text, user, password) {
  const url = URL.canParse(text) ? new URL(text) : null;
  if (!['http:', 'https:'].includes(url?.protocol)) {
    throw new TypeError(`expected http://host/topics or https://host/topics, got ${text}`);
  }
  if (user === undefined && url.username) {
    user = decodeURIComponent(url.username);
    password = decodeURIComponent(url.password);
  }
  url.username = url.password = '';
  return { url, user, password };
}

/** The headers of every request. */
function headersFor({ user, password }) {
  const headers = { 'User-Agent': 'pypubsub-client (nodejs)', 'Accept-Encoding': 'identity' };
  if (user !== undefined) {
    headers.Authorization = `Basic ${Buffer.from(`${user}:${password ?? ''}`).toString('base64')}`;
  }
  return headers;
}

function clientFor(url) {
  return url.protocol === 'https:' ? https : http;
}

/** The lines of a stream, with the headers at its head, however it is cut into pieces, until it breaks: then what
 * broke it is thrown. What follows the last newline is half a line, and dropped. */
async function* linesOf(address, replay, silence, signal) {
  const utf8 = new TextDecoder('utf-8', { fatal: true });
  const unfinished = new Bytes(); // the line whose newline is still to come
  for await (const { piece, head } of piecesOf(address, replay, silence, signal)) {
    let start = 0;
    for (let end; (end = piece.indexOf('\n', start)) !== -1; start = end + 1) {
      unfinished.add(piece.subarray(start, end));
      const line = utf8.decode(unfinished.take()).replace(/^\0+/, '').trim(); // a NUL may follow each newline
      if (line) yield { line, head };
    }
    unfinished.add(piece.subarray(start));
    if (unfinished.length > MAX_LINE_BYTES) throw new Error(`a line of more than ${MAX_LINE_BYTES} bytes`);
  }
}

/** Bytes one behind the other, however small the pieces are that they come in. */
class Bytes {
  length = 0;
  #space = Buffer.alloc(64 * 1024);

  add(piece) {
    if (this.length + piece.length > this.#space.length) {
      this.#space = Buffer.concat([this.#space.subarray(0, this.length)], 2 * (this.length + piece.length));
    }
    this.length += piece.copy(this.#space, this.length);
  }

  /** All of them, to be used before the next are added. */
  take() {
    const bytes = this.#space.subarray(0, this.length);
    this.length = 0;
    return bytes;
  }
}

/** The bytes of one GET as they come. They are taken in whatever the consumer does: a response that breaks forgets
 * what was not read yet, and the last events before a server's restart would be lost. */
async function* piecesOf(address, replay, silence, signal) {
  let pieces = []; // that the loop below has not taken yet
  let bytes = 0; // that they take in memory
  let ended = null; // why there will be no more
  let wake = () => {}; // the loop below
  let response = null;
  const end = (error) => {
    ended ??= error;
    wake();
  };

  const headers = { ...headersFor(address), ...replay };
  const request = clientFor(address.url).get(address.url, { headers, agent: false, signal });
  const watch = new SilenceWatch(silence, () => {
    const refusing = response !== null && response.statusCode !== 200; // then what came of its text will do
    if (!refusing && response?.isPaused()) return watch.heard(); // it is the consumer who is slow
    if (!refusing) end(new Error(`nothing came for ${silence} s`));
    request.destroy();
  });
  request.on('error', end);
  request.on('close', () => response ?? end(new Error('the connection was closed without an answer')));
  request.on('response', async (incoming) => {
    response = incoming;
    if (response.statusCode !== 200) {
      return end(new Refused(response.statusCode, await refusalText(response), retryAfterOf(response)));
    }
    watch.heard();
    response.on('data', (piece) => {
      watch.heard();
      pieces.push(piece);
      bytes += piece.length + PIECE_COST;
      if (bytes > READ_AHEAD_BYTES) response.pause();
      wake();
    });
    response.on('end', () => end(new Error('the server ended the stream')));
    response.on('error', end);
  });

  try {
    for (;;) {
      while (pieces.length > 0) {
        const piece = Buffer.concat(pieces);
        pieces = [];
        bytes = 0;
        if (response.isPaused()) {
          watch.heard();
          response.resume();
        }
        yield { piece, head: response.headers };
      }
      if (ended) throw ended;
      await new Promise((resolve) => {
        wake = resolve;
      });
    }
  } finally {
    watch.stop();
    request.destroy(); // also when the consumer has left the loop
  }
}

/** Calls `onSilence` when heard() has not been called for so many seconds. */
class SilenceWatch {
  #timer;
  #heard = false;

  constructor(seconds, onSilence) {
    this.#timer = setTimeout(() => {
      // A program that was busy for so long finds the time over though bytes are there: look once more.
      this.#heard = false;
      setImmediate(() => this.#heard || onSilence());
    }, seconds * 1000);
  }

  heard() {
    this.#heard = true;
    this.#timer.refresh();
  }

  stop() {
    this.#heard = true;
    clearTimeout(this.#timer);
  }
}

function parse(line) {
  let event;
  try {
    event = JSON.parse(line);
  } catch {
    throw new Error(`a line that is not JSON: ${line.slice(0, 80)}`);
  }
  if (typeof event !== 'object' || event === null || Array.isArray(event)) {
    throw new Error(`a line that is not a JSON object: ${line.slice(0, 80)}`);
  }
  return event;
}

function isPing(event) {
  return Object.keys(event).join() === 'stillalive';
}

/** What an answer says, in one line. Its body may be endless, broken or missing. */
async function refusalText(response) {
  const pieces = [];
  let length = 0;
  try {
    for await (const piece of response) {
      pieces.push(piece);
      length += piece.length;
      if (length >= MAX_TEXT) break;
    }
  } catch {
    // the status, and what came of the text, say more than the reason why the rest did not come
  }
  const text = Buffer.concat(pieces).toString().split(/\s+/).join(' ').trim() || response.statusMessage;
  const { location } = response.headers;
  return text.slice(0, MAX_TEXT) + (location ? ` (Location: ${location.slice(0, MAX_TEXT)})` : '');
}

/** The seconds that a server asks to wait, in so many words or until a date; 0 if it does not ask. */
function retryAfterOf(response) {
  const text = response.headers['retry-after'] ?? '';
  const seconds = /^[0-9]+$/.test(text) ? Number(text) : (Date.parse(text) - Date.now()) / 1000;
  return Math.min(Math.max(seconds || 0, 0), LONGEST_WISH);
}

function textOf(error) {
  // A host with several addresses gives an AggregateError, which has no message of its own.
  const text = error.message || error.errors?.map((each) => each.message).join(', ') || error.code || error.name;
  return text.slice(0, MAX_TEXT).replace(/\s+/g, ' ').trim();
}

// The command line.

const USAGE = `usage: client.js [options] URL
       client.js [options] publish URL JSON

Print the events of a PyPubSub server, one a line, or publish one and print its cursor.

  --user NAME:PASSWORD  credentials
  --silence SECONDS     reconnect when nothing came for so long (11)
  --max-wait SECONDS    the longest pause before a reconnect (60)
  --cursor CURSOR       start after the event with this cursor
  --since TIME          start with the events since then: Unix seconds, ISO 8601, or 10m (ago)
  --cursor-file FILE    after each event printed, save its cursor there; the next run goes on from it
  --key KEY             publish with this Idempotency-Key (a random one)
  --retry-for SECONDS   publish again for so long while no answer comes, or 429, 502, 503 or 504 (30)`;

function complain(text) {
  process.stderr.write(`client.js: ${text}\n`);
}

function readArguments(argv) {
  const text = { type: 'string' };
  const { values, positionals } = parseArgs({
    args: argv,
    allowPositionals: true,
    options: {
      user: text,
      silence: text,
      'max-wait': text,
      cursor: text,
      since: text,
      'cursor-file': text,
      key: text,
      'retry-for': text,
      help: { type: 'boolean', short: 'h' },
    },
  });
  const seconds = (name, standard, least = Number.MIN_VALUE) => {
    const value = values[name] === undefined ? standard : Number(values[name]);
    if (!(value >= least && value < Infinity)) {
      throw new Error(`--${name}: expected a number of seconds, got ${values[name]}`);
    }
    return value;
  };
  const options = {
    silence: seconds('silence', 11),
    maxWait: seconds('max-wait', 60),
    cursor: values.cursor,
    since: values.since,
    cursorFile: values['cursor-file'],
    idempotencyKey: values.key,
    retryFor: seconds('retry-for', 30, 0),
    log: complain,
  };
  if (values.user !== undefined) {
    const [, user, password] = /^([^:]*):(.*)$/s.exec(values.user) ?? [];
    if (user === undefined) throw new Error('--user: expected name:password');
    Object.assign(options, { user, password });
  }
  const publishing = positionals[0] === 'publish';
  if (!values.help && positionals.length !== (publishing ? 3 : 1)) {
    throw new Error('expected URL, or: publish URL JSON');
  }
  return { help: values.help, publishing, words: positionals, options };
}

/** Gives the exit status: 1 if the event was not accepted, 2 for wrong arguments or a useless cursor file. */
async function main(argv) {
  process.on('SIGINT', () => process.exit(130));
  process.stdout.on('error', () => process.exit(0)); // whoever read the events has left
  let given;
  try {
    given = readArguments(argv);
  } catch (error) {
    complain(`${textOf(error)} (--help explains)`);
    return 2;
  }
  const { help, publishing, words, options } = given;
  try {
    if (help) {
      console.log(USAGE);
    } else if (publishing) {
      console.log((await publish(words[1], words[2], options)) ?? '');
    } else {
      const print = promisify(process.stdout.write.bind(process.stdout)); // done when the text has left the program
      for await (const { line } of follow(words[0], options)) await print(`${line}\n`);
    }
    return 0;
  } catch (error) {
    complain(textOf(error));
    return error instanceof PublishError ? 1 : 2;
  }
}

module.exports = { listen, follow, publish, backoff, PublishError };

if (require.main === module) {
  main(process.argv.slice(2)).then((status) => {
    process.exitCode = status;
  });
}
