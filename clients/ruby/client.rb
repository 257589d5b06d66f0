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

require 'delegate'
require 'json'
require 'net/http'
require 'openssl'
require 'securerandom'
require 'time'
require 'timeout'
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
  MAX_HEAD_BYTES = 128 * 1024 # of a head, or of what HTTP puts between two pieces of a body
  MAX_NESTING = 1000 # of an event: twice what a server takes, and no danger to the stack of a thread or a Fiber
  MAX_TEXT = 1000 # bytes of what a server says that go into an error
  STEADY = 10 # seconds; the end of a stream that lived for less is a failure like a refusal
  LONGEST_WISH = 86_400 # seconds; no Retry-After is taken for more

  # The server's answer is not, or no longer, a stream of events.
  class StreamError < StandardError; end

  # The server answered a GET with something other than 200.
  class Refused < StreamError
    attr_reader :status, :retry_after

    def initialize(status, text, retry_after)
      super("refused: #{status} #{text}".rstrip)
      @status = status
      @retry_after = retry_after
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
      @file = file && CursorFile.new(file)
      @cursor = @file&.start { |found| check(found, "cursor file #{file}") } || cursor
      @since = since
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
      @file&.save(cursor)
    end

    private

    def check(cursor, source)
      return if CURSOR.match?(cursor)

      raise ArgumentError, "#{source}: expected 36 characters of 0-9, A-Z, a-z and -, got #{cursor[0, 80].inspect}"
    end
  end
  private_constant :Position

  # A file that holds a cursor. A new one is written beside it and takes its place: `NAME.PID.new`.
  # Its methods raise SystemCallError, which names it.
  class CursorFile
    def initialize(path)
      @path = path
    end

    # The cursor in it, once the block has looked at it; nil if there is no file yet. Tries whether it can be
    # replaced, and removes what a run that was killed has left beside it.
    def start
      cursor = naming do
        @target = target_of(@path) # absolute, for programs that change their directory
        remove_leftovers
        next read if File.exist?(@target)

        File.unlink(write_beside(''))
        nil
      end
      return if cursor.nil?

      yield cursor
      save(cursor)
      cursor
    end

    # Puts this cursor in the place of what is there.
    def save(cursor)
      naming do
        replace(cursor)
      rescue Errno::ENOENT
        replace(cursor) # another run that is just starting may have taken it for a leftover
      end
    end

    private

    def naming
      yield
    rescue SystemCallError => e
      raise e.class, "cursor file #{@path}"
    end

    # The absolute path of the file that a path leads to, through any links, be it there or not.
    def target_of(path)
      File.realpath(path)
    rescue Errno::ENOENT
      place = File.join(File.realpath(File.dirname(path)), File.basename(path))
      File.symlink?(place) ? target_of(File.expand_path(File.readlink(place), File.dirname(place))) : place
    end

    def remove_leftovers
      leftover = /\A#{Regexp.escape(File.basename(@target))}\.[0-9]+\.new\z/
      directory = File.dirname(@target)
      Dir.each_child(directory).grep(leftover).each { |name| File.unlink(File.join(directory, name)) }
    rescue Errno::EACCES
      # a directory may be writable, and not readable
    end

    def read
      unless File.file?(@target) # a pipe would be waited for, a device replaced
        raise ArgumentError, "cursor file #{@path}: is a #{File.ftype(@target)}, and not a regular file"
      end

      File.read(@target, MAX_TEXT).to_s.scrub.strip
    end

    def replace(cursor)
      beside = write_beside("#{cursor}\n")
      File.rename(beside, @target)
    rescue SystemCallError
      File.unlink(beside) if beside && File.exist?(beside)
      raise
    end

    # The path of a new file, of the mode of the one that is there.
    def write_beside(text)
      beside = "#{@target}.#{Process.pid}.new"
      file = File.open(beside, File::WRONLY | File::CREAT | File::EXCL) # follows no link
      begin
        file.write(text)
        file.flush
        mode = File.exist?(@target) ? File.stat(@target).mode : file.stat.mode
        file.chmod(mode & 0o7777) unless mode == file.stat.mode
      rescue SystemCallError
        File.unlink(beside)
        raise
      ensure
        file.close
      end
      beside
    end
  end
  private_constant :CursorFile

  # What a Connection reads from and writes to. It waits until a deadline, and gives out so many bytes.
  class Patience < SimpleDelegator
    def initialize(socket, seconds)
      super(socket)
      @seconds = seconds
      renew
    end

    # From now on it has the whole time, and takes all the bytes.
    def renew
      @deadline = Process.clock_gettime(Process::CLOCK_MONOTONIC) + @seconds
      @bytes = 0
    end

    def read_nonblock(length, buffer = nil, exception: true)
      piece = once_ready { super(length, buffer, exception: false) }
      @bytes += piece.bytesize if piece
      raise StreamError, "more than #{MAX_HEAD_BYTES} bytes without any content" if @bytes > MAX_HEAD_BYTES

      piece
    end

    def write_nonblock(text, exception: true)
      once_ready { super(text, exception: false) }
    end

    private

    # What the block gives, as soon as that is no longer a symbol that says what to wait for.
    def once_ready
      while (result = yield).is_a?(Symbol)
        left = [@deadline - Process.clock_gettime(Process::CLOCK_MONOTONIC), 0].max
        ready = result == :wait_readable ? to_io.wait_readable(left) : to_io.wait_writable(left)
        raise Net::ReadTimeout unless ready
      end
      result
    end
  end
  private_constant :Patience

  # Net::HTTP by itself takes heads, answers 1xx, lengths of chunks and trailers of any size, and waits for ever as
  # long as a byte comes now and then.
  class Connection < Net::HTTP
    # Something came that the program gets: what follows has its own time.
    def renew
      @patience.renew
    end

    private

    def on_connect
      @patience = Patience.new(@socket.io, read_timeout)
      @socket = Net::BufferedIO.new(@patience, read_timeout: read_timeout, write_timeout: write_timeout)
    end
  end
  private_constant :Connection

  # Whatever can be wrong with a connection.
  BROKEN = [StreamError, SystemCallError, SocketError, IOError, Timeout::Error, OpenSSL::OpenSSLError,
            Net::ProtocolError, Net::HTTPBadResponse, Net::HTTPHeaderSyntaxError].freeze

  module_function

  # Hands the events of a URL to the block for ever, one Hash each, reconnecting whenever the stream ends, and going
  # on after the event that was handled last. An event is handled when the block returns.
  # Leaving the block (break, an error) closes the connection.
  #
  # silence:     seconds without a byte after which the connection counts as dead; a server pings every 5
  # max_wait:    the longest pause, in seconds, before connecting again, whatever a server asks for
  # cursor:      start after it: the pubsub_cursor of an event, or what publish returned
  # since:       as long as there is no cursor, start with the events since then: Unix seconds, or a text that the
  #              server takes for a time
  # cursor_file: a path, to keep the cursor for the next run; a file that is there wins over cursor and since.
  #              It is replaced as a whole after each event: however the program ends, it is sound, and one event
  #              late at most. It is not forced onto the disk: a power cut may leave it older, or empty.
  #              It keeps its mode; of a symbolic link, the file that it leads to is replaced
  # on_replay:   called on each connection that asked for earlier events, before these, with the server's verdict:
  #              'complete', 'partial' (some are gone), 'unknown' or 'none' (it keeps no backlog, or is too old to
  #              tell)
  # log:         is called with a line of text
  #
  # Raises ArgumentError for a cursor, or a cursor file, that holds none; SystemCallError if the file cannot be used:
  # before anything is asked of the server, unless the file becomes useless later.
  def listen(url, user: nil, password: nil, silence: 11, max_wait: 60, cursor: nil, since: nil, cursor_file: nil,
             on_replay: nil, log: method(:warn))
    address, user, password = split_credentials(url, user, password)
    position = Position.new(cursor, since, cursor_file)
    failures = 0 # in a row, since the last stream that was steady
    while true # not `loop`, which would swallow a StopIteration of the block
      began = nil # when the first line came
      in_program = false
      replay = position.headers
      begin
        each_line(address, headers(user, password).merge(replay), silence) do |line, head|
          event = parse(line, log)
          in_program = true
          if began.nil?
            began = now
            log.call("following #{address}")
            position.at_head = head['X-Cursor']
            tell_of_replay(address, head['X-Replay'] || 'none', on_replay, log) unless replay.empty?
          end
          if event&.keys == ['stillalive'] # a ping
            position.pinged
          elsif event
            yield event
            position.handled(event['pubsub_cursor'])
          end
          in_program = false
        end
      rescue *BROKEN => e
        raise if in_program # an error of the block, of on_replay, or of the cursor file

        failures = 0 if began && now - began >= STEADY
        pause = pause_after(e, failures, max_wait)
        log.call(format('%s: %s; again in %.2f s', address, reason(e, silence), pause))
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
    ending = now + retry_for
    failures = 0
    begin
      publish_once(address, request, timeout)
    rescue PublishError => e
      left = ending - now
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
    connect(address, timeout) do |http|
      http.request(request) do |response|
        return response['X-Cursor'] if response.is_a?(Net::HTTPSuccess)

        raise PublishError.new(response.code.to_i, refusal_text(response), retry_after(response))
      end
    end
  rescue *BROKEN => e
    raise PublishError.new(nil, "#{address}: #{reason(e, timeout)}")
  end

  # Seconds to wait before connecting again.
  def pause_after(error, failures, max_wait)
    return backoff(failures, max_wait) unless error.is_a?(Refused)

    pause = [401, 403].include?(error.status) ? long_pause(max_wait) : backoff(failures, max_wait)
    [max_wait, [error.retry_after, pause].max].min
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

  # Gives the block a connection that was made within so many seconds. What it waits for has as long.
  def connect(address, seconds)
    http = Connection.new(address.hostname, address.port)
    http.use_ssl = address.scheme == 'https'
    http.open_timeout = http.ssl_timeout = http.read_timeout = seconds
    http.max_retries = 0 # Net::HTTP sends a GET again by itself, and a PUT too
    Timeout.timeout(seconds, Net::OpenTimeout) { http.start } # those above are for each step of it
    yield http
  ensure
    http.finish if http&.started?
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
        unless response.code == '200'
          raise Refused.new(response.code.to_i, refusal_text(response), retry_after(response))
        end

        http.renew
        response.read_body do |piece|
          yield piece, response
          http.renew
        end
      end
    end
    raise StreamError, 'the server ended the stream'
  end

  # The event of a line, or a ping; nil if it is nested too deep.
  def parse(line, log)
    event = line.valid_encoding? && JSON.parse(line, max_nesting: MAX_NESTING)
    raise StreamError, "a line that is not a JSON object: #{line[0, 80].inspect}" unless event.is_a?(Hash)

    event
  rescue JSON::NestingError
    log.call("an event left out, nested more than #{MAX_NESTING} deep: #{line[0, 80].inspect}...")
    nil
  rescue JSON::ParserError
    raise StreamError, "a line that is not JSON: #{line[0, 80].inspect}"
  end

  # What a refusal says, in one line.
  def refusal_text(response)
    text = one_line(read_refusal(response))
    text = one_line(response.message) if text.empty?
    response['Location'] ? "#{text} (Location: #{one_line(response['Location'])})" : text
  end

  # The start of a body, which may be endless, broken or missing.
  def read_refusal(response)
    text = +''
    catch(:enough) do
      response.read_body { |piece| (text << piece).bytesize < MAX_TEXT or throw :enough }
    end
    text
  rescue *BROKEN
    text # says more than the reason why the rest of it did not come
  end

  # The seconds that a server asks to wait, in so many words or until a date; 0 if it does not ask.
  def retry_after(response)
    text = response['Retry-After'].to_s
    seconds = text.match?(/\A[0-9]+\z/) ? text.to_f : Time.httpdate(text) - Time.now
    seconds.clamp(0, LONGEST_WISH)
  rescue ArgumentError
    0
  end

  def reason(error, patience)
    error.is_a?(Timeout::Error) ? "nothing came for #{patience} s" : text_of(error)
  end

  def text_of(error)
    error.message.empty? ? error.class.name : one_line(error.message)
  end

  def one_line(text)
    text.to_s.byteslice(0, MAX_TEXT).force_encoding(Encoding::UTF_8).scrub.split.join(' ')
  end

  def now
    Process.clock_gettime(Process::CLOCK_MONOTONIC)
  end

  private_class_method :publish_once, :tell_of_replay, :split_credentials, :headers, :connect, :each_line,
                       :each_piece, :parse, :read_refusal, :refusal_text, :retry_after, :reason, :text_of, :one_line,
                       :pause_after, :long_pause, :now
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
