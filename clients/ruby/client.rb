#!/usr/bin/env ruby
# frozen_string_literal: true

# Follow a PyPubSub server, and publish to it: one file to copy into a program of your own.
# Needs Ruby 3.0 or later, and nothing else.
#
#     require_relative 'client'
#
#     PyPubSub.listen('https://pubsub.example.org/fruits') do |event|
#       puts event['pubsub_path'], event
#     end
#
#     cursor = PyPubSub.publish('https://pubsub.example.org/fruits/apples', { colour: 'red' })
#
# The same from a shell, one event a line:
#
#     ruby client.rb https://pubsub.example.org/fruits
#     ruby client.rb publish https://pubsub.example.org/fruits/apples '{"colour": "red"}'
#
# A server's stream has no end of its own: whatever ends it, listen says so in the log, connects again, and asks
# for what was published meanwhile.

require 'json'
require 'net/http'
require 'openssl'
require 'securerandom'
require 'uri'

module PyPubSub
  CURSOR = /\A[0-9A-Za-z-]{36}\z/.freeze
  # What a server's verdict on a replay says about the events published since.
  MISSING = {
    'partial' => 'events of the time away are missing',
    'unknown' => 'the server cannot tell whether events are missing',
    'none' => 'the server keeps no backlog, or does not tell: events of the time away may be missing'
  }.freeze
  TRY_AGAIN = [nil, 429, 502, 503, 504].freeze # after such a status the same event may be accepted; nil: no answer
  MAX_LINE_BYTES = 16 * 1024 * 1024 # far above a server's limit (600,000): a guard against what is no PyPubSub

  # The server's answer is not, or no longer, a stream of events.
  class StreamError < StandardError; end

  # The server answered a GET with something other than 200.
  class Refused < StreamError
    attr_reader :status

    def initialize(status, text)
      super("refused: #{status} #{text}".rstrip)
      @status = status
    end
  end

  # An event was not accepted. `status` is the server's, or nil if no answer came: it may be published then.
  # `retry_after` is how many seconds the server asks to wait.
  class PublishError < StandardError
    attr_reader :status, :text, :retry_after

    def initialize(status, text, retry_after = 0)
      super("#{status} #{text}".strip)
      @status = status
      @text = text
      @retry_after = retry_after
    end
  end

  # Where the program is in the stream: what comes after the cursor is what it has yet to handle.
  class Position
    attr_writer :at_head # the cursor of the moment when this connection's stream began

    def initialize(cursor, since, file)
      check(cursor, 'cursor') if cursor
      check(cursor = File.read(file).scrub.strip, "cursor file #{file}") if file && File.exist?(file)
      @cursor = cursor
      @since = since
      @file = file
    end

    # What asks for a replay from there; empty if there is no such place yet.
    def headers
      return { 'X-Fetch-Since-Cursor' => @cursor } if @cursor

      @since ? { 'X-Fetch-Since' => @since.to_s } : {}
    end

    # A ping came: the first one says that everything up to the stream's head has come.
    def pinged
      handled(@at_head)
      @at_head = nil
    end

    # Everything up to this cursor is handled; nothing new if there is none, as from some servers.
    def handled(cursor)
      return unless cursor.is_a?(String) && CURSOR.match?(cursor)

      @cursor = cursor
      save if @file
    end

    private

    def check(cursor, source)
      return if CURSOR.match?(cursor)

      raise ArgumentError, "#{source}: expected 36 characters of 0-9, A-Z, a-z and -, got #{cursor[0, 80].inspect}"
    end

    def save
      beside = "#{@file}.#{Process.pid}"
      File.write(beside, "#{@cursor}\n")
      File.rename(beside, @file)
    rescue SystemCallError => e
      raise e.class, "cursor file #{@file}"
    end
  end
  private_constant :Position

  # Whatever can be wrong with a connection.
  BROKEN = [StreamError, SystemCallError, SocketError, IOError, Timeout::Error, OpenSSL::OpenSSLError,
            Net::ProtocolError, Net::HTTPBadResponse, Net::HTTPHeaderSyntaxError].freeze

  module_function

  # Hands the events of a URL to the block for ever, one Hash each, reconnecting whenever the stream ends, and going
  # on after the event that was handled last. An event is handled when the block returns.
  # Leaving the block (break, an error) closes the connection.
  #
  # silence:     seconds without a byte after which the connection counts as dead; a server pings every 5
  # max_wait:    the longest pause, in seconds, before connecting again
  # cursor:      start after it: the pubsub_cursor of an event, or what publish returned
  # since:       as long as there is no cursor, start with the events since then: Unix seconds, or a text that the
  #              server takes for a time
  # cursor_file: a path, to keep the cursor for the next run; a file that is there wins over cursor and since.
  #              It is replaced as a whole after each event: however the program ends, it is sound, and one event
  #              late at most. It is not forced onto the disk: a power cut may leave it older, or empty
  # on_replay:   called on each connection that asked for earlier events, before these, with the server's verdict:
  #              'complete', 'partial' (some are gone), 'unknown' or 'none' (it keeps no backlog, or is too old to
  #              tell)
  # log:         is called with a line of text
  #
  # Raises ArgumentError for a cursor, or a cursor file, that holds none; SystemCallError if the file cannot be used.
  def listen(url, user: nil, password: nil, silence: 11, max_wait: 60, cursor: nil, since: nil, cursor_file: nil,
             on_replay: nil, log: method(:warn))
    address, user, password = split_credentials(url, user, password)
    position = Position.new(cursor, since, cursor_file)
    failures = 0 # in a row, since the last stream that gave a line
    while true # not `loop`, which would swallow a StopIteration of the block
      following = in_program = false
      replay = position.headers
      begin
        each_line(address, headers(user, password).merge(replay), silence) do |line, head|
          event = parse(line)
          in_program = true
          unless following
            following = true
            failures = 0
            log.call("following #{address}")
            position.at_head = head['X-Cursor']
            tell_of_replay(address, head['X-Replay'] || 'none', on_replay, log) unless replay.empty?
          end
          if event.keys == ['stillalive'] # a ping
            position.pinged
          else
            yield event
            position.handled(event['pubsub_cursor'])
          end
          in_program = false
        end
      rescue *BROKEN => e
        raise if in_program # an error of the block, of on_replay, or of the cursor file

        refused_for_good = e.is_a?(Refused) && [401, 403].include?(e.status)
        pause = refused_for_good ? long_pause(max_wait) : backoff(failures, max_wait)
        reason = e.is_a?(Timeout::Error) ? "nothing came for #{silence} s" : text_of(e)
        log.call(format('%s: %s; again in %.2f s', address, reason, pause))
      end
      failures += 1
      sleep pause
    end
  end

  # Publishes one event under the topics in the path of the URL. Returns its cursor, or raises PublishError.
  #
  # payload:   a Hash, or the text of one in JSON
  # method:    'POST' or 'PUT', the same to a server
  # timeout:   seconds to wait for each of: the connection, the answer
  # idempotency_key: 1 to 255 visible ASCII characters that name the event, for the server to publish it once however
  #            often it comes
  # retry_for: seconds during which the event is sent again, with its key, after no answer and after 429, 502, 503
  #            and 504; 0 for a single attempt. Over a restart of the server this is safe only if its backlog is
  #            durable: without, it forgets the keys, and may publish the event twice
  # log:       is called with a line of text
  def publish(url, payload, user: nil, password: nil, method: 'POST', timeout: 30, idempotency_key: SecureRandom.uuid,
              retry_for: 30, log: method(:warn))
    address, user, password = split_credentials(url, user, password)
    request = Net::HTTPGenericRequest.new(method, true, true, address, headers(user, password))
    request.content_type = 'application/json'
    request['Idempotency-Key'] = idempotency_key
    request.body = payload.is_a?(String) ? payload : JSON.generate(payload, max_nesting: 0)
    ending = Process.clock_gettime(Process::CLOCK_MONOTONIC) + retry_for
    failures = 0
    begin
      publish_once(address, request, timeout)
    rescue PublishError => e
      left = ending - Process.clock_gettime(Process::CLOCK_MONOTONIC)
      raise if !TRY_AGAIN.include?(e.status) || left <= 0

      pause = [left, [e.retry_after, backoff(failures, retry_for)].max].min
      log.call(format('not published: %s; again in %.2f s', text_of(e), pause))
      failures += 1
      sleep pause
      retry
    end
  end

  # One attempt.
  def publish_once(address, request, timeout)
    response = connect(address, timeout) { |http| http.request(request) }
    return response['X-Cursor'] if response.is_a?(Net::HTTPSuccess)

    retry_after = response['Retry-After'].to_i # may be a date: then it is not heeded
    raise PublishError.new(response.code.to_i, refusal_text(response, response.body), retry_after)
  rescue *BROKEN => e
    raise PublishError.new(nil, "#{address}: #{text_of(e)}")
  end

  # Seconds to wait after so many failures in a row: a random part of 1, 2, 4, 8... so that the clients of
  # a restarted server do not come back all at once.
  def backoff(failures, max_wait)
    rand * [max_wait, 2.0**failures].min
  end

  # Seconds to wait after a refusal that will not go away by itself: a password or a right is missing.
  def long_pause(max_wait)
    max_wait * (1 + rand) / 2.0
  end

  # Says what a server's verdict on a replay means, unless all is well.
  def tell_of_replay(address, verdict, on_replay, log)
    log.call("#{address}: the replay was #{verdict}: #{MISSING[verdict]}") if MISSING.key?(verdict)
    on_replay&.call(verdict)
  end

  # The URL without credentials, fit for a log, and the credentials: those given, else those in the URL.
  def split_credentials(url, user, password)
    address = URI.parse(url)
    unless address.is_a?(URI::HTTP) && address.hostname.to_s != ''
      raise ArgumentError, "expected http://host/topics or https://host/topics, got #{url}"
    end

    if user.nil? && address.user
      user = URI.decode_www_form_component(address.user.gsub('+', '%2B'))
      password = URI.decode_www_form_component(address.password.to_s.gsub('+', '%2B'))
    end
    bare = address.class.build(host: address.host, port: address.port, path: address.path, query: address.query)
    [bare, user, password]
  rescue URI::Error => e
    raise ArgumentError, "not a URL: #{e.message}"
  end

  # The headers of every request.
  def headers(user, password)
    headers = {
      'User-Agent' => 'pypubsub-client (ruby)',
      'Accept-Encoding' => 'identity' # Net::HTTP asks for gzip by itself; a compressed stream comes in lumps
    }
    headers['Authorization'] = "Basic #{["#{user}:#{password}"].pack('m0')}" if user
    headers
  end

  def connect(address, seconds, &block)
    http = Net::HTTP.new(address.hostname, address.port)
    http.use_ssl = address.scheme == 'https'
    http.open_timeout = http.ssl_timeout = http.read_timeout = seconds
    http.max_retries = 0 # Net::HTTP sends a GET again by itself, and a PUT too
    http.start(&block)
  end

  # The lines of a stream, each with the response, however it is cut into pieces, until it breaks: then what broke
  # it is raised. What follows the last newline is half a line, and dropped.
  def each_line(address, headers, silence)
    unfinished = String.new(encoding: Encoding::BINARY)
    each_piece(address, headers, silence) do |piece, response|
      first, *rest = piece.b.split("\n", -1)
      unfinished << first.to_s
      rest.each do |start|
        line = unfinished.sub(/\A\0+/n, '').strip # some servers send a NUL after the newline
        unfinished = String.new(start, encoding: Encoding::BINARY)
        yield line.force_encoding(Encoding::UTF_8), response unless line.empty?
      end
      raise StreamError, "a line of more than #{MAX_LINE_BYTES} bytes" if unfinished.bytesize > MAX_LINE_BYTES
    end
  end

  # The bytes of one GET as they come.
  def each_piece(address, headers, silence)
    connect(address, silence) do |http|
      http.request(Net::HTTP::Get.new(address, headers)) do |response|
        raise Refused.new(response.code.to_i, read_refusal(response)) unless response.code == '200'

        response.read_body { |piece| yield piece, response }
      end
    end
    raise StreamError, 'the server ended the stream'
  end

  def parse(line)
    event = line.valid_encoding? && JSON.parse(line, max_nesting: false)
    raise StreamError, "a line that is not a JSON object: #{line[0, 80].inspect}" unless event.is_a?(Hash)

    event
  rescue JSON::ParserError
    raise StreamError, "a line that is not JSON: #{line[0, 80].inspect}"
  end

  # The body of a refusal may be endless, broken or missing.
  def read_refusal(response)
    text = +''
    catch(:enough) do
      response.read_body { |piece| (text << piece).bytesize < 1000 or throw :enough }
    end
    refusal_text(response, text)
  rescue *BROKEN
    refusal_text(response, text) # says more than the reason why the rest of it did not come
  end

  # What a refusal says, in one line.
  def refusal_text(response, body)
    text = body.to_s.byteslice(0, 1000).force_encoding(Encoding::UTF_8).scrub.split.join(' ')
    text = response.message if text.empty?
    response['Location'] ? "#{text} (Location: #{response['Location']})" : text
  end

  def text_of(error)
    error.message.empty? ? error.class.name : error.message.split.join(' ')
  end

  private_class_method :publish_once, :tell_of_replay, :split_credentials, :headers, :connect, :each_line,
                       :each_piece, :parse, :read_refusal, :refusal_text, :text_of, :long_pause
end

# The command line.

if $PROGRAM_NAME == __FILE__
  require 'optparse'

  complain = ->(text) { warn "client.rb: #{text}" }
  options = { log: complain }
  following = { silence: 11, max_wait: 60 }
  publishing = {}
  seconds = lambda do |text, least = Float::MIN|
    Float(text).tap { |number| raise OptionParser::InvalidArgument unless number >= least && number.finite? }
  rescue ArgumentError
    raise OptionParser::InvalidArgument
  end
  parser = OptionParser.new do |arguments|
    arguments.banner = "usage: client.rb [options] URL\n       client.rb [options] publish URL JSON\n\n" \
                       "Print the events of a PyPubSub server, one a line, or publish one and print its cursor.\n\n"
    arguments.on('--user NAME:PASSWORD', /\A[^:]*:.*\z/m, 'credentials') do |text|
      options[:user], options[:password] = text.split(':', 2)
    end
    arguments.on('--silence SECONDS', 'reconnect when nothing came for so long (11)') do |text|
      following[:silence] = seconds.call(text)
    end
    arguments.on('--max-wait SECONDS', 'the longest pause before a reconnect (60)') do |text|
      following[:max_wait] = seconds.call(text)
    end
    arguments.on('--cursor CURSOR', 'start after the event with this cursor') { |text| following[:cursor] = text }
    arguments.on('--since TIME', 'start with the events since then: Unix seconds, ISO 8601, or 10m (ago)') do |text|
      following[:since] = text
    end
    arguments.on('--cursor-file FILE',
                 'after each event printed, save its cursor there; the next run goes on from it') do |path|
      following[:cursor_file] = path
    end
    arguments.on('--key KEY', 'publish with this Idempotency-Key (a random one)') do |text|
      publishing[:idempotency_key] = text
    end
    arguments.on('--retry-for SECONDS',
                 'publish again for so long while no answer comes, or 429, 502, 503 or 504 (30)') do |text|
      publishing[:retry_for] = seconds.call(text, 0)
    end
  end
  $stdout.sync = true
  begin
    words = parser.parse(ARGV)
    publish = words.first == 'publish'
    raise ArgumentError, 'expected URL, or: publish URL JSON (--help explains)' if words.size != (publish ? 3 : 1)

    if publish
      puts PyPubSub.publish(words[1], words[2], **options, **publishing)
    else
      PyPubSub.listen(words[0], **options, **following) do |event|
        puts JSON.generate(event, max_nesting: 0)
      end
    end
  rescue PyPubSub::PublishError => e
    complain.call(e.message)
    exit 1
  rescue Errno::EPIPE
    exit # whoever read the events has left
  rescue ArgumentError, OptionParser::ParseError, SystemCallError => e
    complain.call(e.message)
    exit 2
  rescue Interrupt
    exit 130
  end
end
