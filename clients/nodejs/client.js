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
 * A server's stream has no end of its own: whatever ends it, listen() says so in the log and connects again.
 */
'use strict';

const http = require('node:http');
const https = require('node:https');
const { once } = require('node:events');
const { setTimeout: sleep } = require('node:timers/promises');
const { parseArgs } = require('node:util');

const MAX_LINE_BYTES = 16 * 1024 * 1024; // far above a server's limit (600,000): a guard against what is no PyPubSub
const READ_AHEAD_BYTES = 1024 * 1024; // taken off the network while the consumer is busy

/** The server answered a GET with something other than 200. */
class Refused extends Error {
  constructor(status, text) {
    super(`refused: ${status} ${text}`.trimEnd());
    this.status = status;
  }
}

/** An event was not accepted. `status` is the server's, or null if no answer came: it may be published then. */
class PublishError extends Error {
  constructor(status, text) {
    super(status === null ? text : `${status} ${text}`.trimEnd());
    this.name = 'PublishError';
    this.status = status;
    this.text = text;
  }
}

/**
 * Yields the events of a URL for ever, one object each, reconnecting whenever the stream ends.
 * Leaving the loop closes the connection; `signal` does so from outside, while the loop waits for an event.
 *
 * Options: user, password;
 *   silence  seconds without a byte after which the connection counts as dead (11; a server pings every 5);
 *   maxWait  the longest pause, in seconds, before connecting again (60);
 *   signal   an AbortSignal; log, a function that takes a line of text (console.error).
 */
async function* listen(url, options = {}) {
  for await (const { event } of follow(url, options)) {
    yield event;
  }
}

/** As listen(), but yields { event, line }, line being the event's own JSON: an object here holds numbers with
 * 53 bits only, so a program that hands on larger ones, or brings a parser for them, wants the text. */
async function* follow(url, { user, password, silence = 11, maxWait = 60, signal, log = console.error } = {}) {
  const address = splitCredentials(url, user, password);
  let failures = 0; // in a row, since the last stream that gave a line
  while (!signal?.aborted) {
    let pause;
    try {
      let following = false;
      for await (const line of linesOf(address, silence, signal)) {
        if (!following) {
          following = true;
          failures = 0;
          log(`following ${address.url}`);
        }
        const event = parse(line);
        if (!isPing(event)) yield { event, line };
      }
    } catch (error) {
      if (signal?.aborted) return;
      pause = [401, 403].includes(error.status) ? longPause(maxWait) : backoff(failures, maxWait);
      log(`${address.url}: ${textOf(error)}; again in ${pause.toFixed(2)} s`);
    }
    failures += 1;
    await sleep(pause * 1000, undefined, { signal }).catch(() => {}); // aborted: the loop ends by itself
  }
}

/**
 * Publishes one event under the topics in the path of `url`. Gives its cursor, or throws PublishError.
 * The payload is an object, or the text of one in JSON.
 * Options: user, password, method ('POST'; 'PUT' is the same to a server), timeout in seconds (30).
 */
async function publish(url, payload, { user, password, method = 'POST', timeout = 30 } = {}) {
  const address = splitCredentials(url, user, password);
  const body = Buffer.from(typeof payload === 'string' ? payload : JSON.stringify(payload));
  const headers = { ...headersFor(address), 'Content-Type': 'application/json', 'Content-Length': body.length };
  const request = clientFor(address.url).request(address.url, { method, headers, agent: false });
  const timer = setTimeout(() => request.destroy(new Error(`nothing came for ${timeout} s`)), timeout * 1000);
  request.on('error', () => {}); // once() below hears the first; a second must not end the program
  request.end(body);
  try {
    const [response] = await once(request, 'response');
    const text = await refusalText(response);
    if (response.statusCode < 200 || response.statusCode > 299) throw new PublishError(response.statusCode, text);
    return response.headers['x-cursor'] ?? null;
  } catch (error) {
    throw error instanceof PublishError ? error : new PublishError(null, `${address.url}: ${textOf(error)}`);
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

/** The lines of a stream, however it is cut into pieces, until it breaks: then what broke it is thrown.
 * What follows the last newline is half a line, and dropped. */
async function* linesOf(address, silence, signal) {
  const utf8 = new TextDecoder('utf-8', { fatal: true });
  let unfinished = []; // pieces of the line whose newline is still to come
  let length = 0;
  for await (const piece of piecesOf(address, silence, signal)) {
    let start = 0;
    for (let end; (end = piece.indexOf('\n', start)) !== -1; start = end + 1) {
      unfinished.push(piece.subarray(start, end));
      const line = utf8.decode(Buffer.concat(unfinished)).replace(/^\0+/, '').trim(); // a NUL may follow each newline
      unfinished = [];
      length = 0;
      if (line) yield line;
    }
    unfinished.push(piece.subarray(start));
    length += piece.length - start;
    if (length > MAX_LINE_BYTES) throw new Error(`a line of more than ${MAX_LINE_BYTES} bytes`);
  }
}

/** The bytes of one GET as they come. They are taken in whatever the consumer does: a response that breaks forgets
 * what was not read yet, and the last events before a server's restart would be lost. */
async function* piecesOf(address, silence, signal) {
  const pieces = [];
  let bytes = 0; // in pieces
  let ended = null; // why there will be no more
  let wake = () => {}; // the loop below
  let response = null;
  const end = (error) => {
    ended ??= error;
    wake();
  };

  const request = clientFor(address.url).get(address.url, { headers: headersFor(address), agent: false, signal });
  const watch = new SilenceWatch(silence, () => {
    if (response?.isPaused()) return watch.heard(); // it is the consumer who is slow
    const refusing = response !== null && response.statusCode !== 200; // then what came of its text will do
    if (!refusing) end(new Error(`nothing came for ${silence} s`));
    request.destroy();
  });
  request.on('error', end);
  request.on('close', () => response ?? end(new Error('the connection was closed without an answer')));
  request.on('response', async (incoming) => {
    response = incoming;
    response.on('data', () => watch.heard());
    if (response.statusCode !== 200) {
      return end(new Refused(response.statusCode, await refusalText(response)));
    }
    response.on('data', (piece) => {
      pieces.push(piece);
      bytes += piece.length;
      if (bytes > READ_AHEAD_BYTES) response.pause();
      wake();
    });
    response.on('end', () => end(new Error('the server ended the stream')));
    response.on('error', end);
  });

  try {
    for (;;) {
      for (let piece; (piece = pieces.shift()); ) {
        bytes -= piece.length;
        if (response.isPaused() && bytes < READ_AHEAD_BYTES / 2) {
          watch.heard();
          response.resume();
        }
        yield piece;
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
      if (length >= 1000) break;
    }
  } catch {
    // the status, and what came of the text, say more than the reason why the rest did not come
  }
  const text = Buffer.concat(pieces).toString().slice(0, 1000).split(/\s+/).join(' ').trim() || response.statusMessage;
  const { location } = response.headers;
  return location ? `${text} (Location: ${location})` : text;
}

function textOf(error) {
  // A host with several addresses gives an AggregateError, which has no message of its own.
  const text = error.message || error.errors?.map((each) => each.message).join(', ') || error.code || error.name;
  return text.replace(/\s+/g, ' ').trim();
}

// The command line.

const USAGE = `usage: client.js [options] URL
       client.js [options] publish URL JSON

Print the events of a PyPubSub server, one a line, or publish one and print its cursor.

  --user NAME:PASSWORD  credentials
  --silence SECONDS     reconnect when nothing came for so long (11)
  --max-wait SECONDS    the longest pause before a reconnect (60)`;

function complain(text) {
  process.stderr.write(`client.js: ${text}\n`);
}

function readArguments(argv) {
  const text = { type: 'string' };
  const { values, positionals } = parseArgs({
    args: argv,
    allowPositionals: true,
    options: { user: text, silence: text, 'max-wait': text, help: { type: 'boolean', short: 'h' } },
  });
  const seconds = (name, standard) => {
    const value = values[name] === undefined ? standard : Number(values[name]);
    if (!(value > 0 && value < Infinity)) {
      throw new Error(`--${name}: expected a number of seconds, got ${values[name]}`);
    }
    return value;
  };
  const options = { silence: seconds('silence', 11), maxWait: seconds('max-wait', 60), log: complain };
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

/** Gives the exit status: 1 if the event was not accepted, 2 for wrong arguments. */
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
      for await (const { line } of follow(words[0], options)) {
        if (!process.stdout.write(`${line}\n`)) await once(process.stdout, 'drain');
      }
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
