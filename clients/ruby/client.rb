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
# A server's stream has no end of its own: whatever ends it, listen says so in the log and connects again.

require 'json'
require 'net/http'
require 'openssl'
require 'uri'

module PyPubSub
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
  class PublishError < StandardError
    attr_reader :status, :text

    def initialize(status, text)
      super("#{status} #{text}".strip)
      @status = status
      @text = text
    end
  end

  # Whatever can be wrong with a connection.
  BROKEN = [StreamError, SystemCallError, SocketError, IOError, Timeout::Error, OpenSSL::OpenSSLError,
            Net::ProtocolError, Net::HTTPBadResponse, Net::HTTPHeaderSyntaxError].freeze

  module_function

  # Hands the events of a URL to the block for ever, one Hash each, reconnecting whenever the stream ends.
  # Leaving the block (break, an error) closes the connection.
  #
  # silence:  seconds without a byte after which the connection counts as dead; a server pings every 5
  # max_wait: the longest pause, in seconds, before connecting again
  # log:      is called with a line of text
  def listen(url, user: nil, password: nil, silence: 11, max_wait: 60, log: method(:warn))
    address, user, password = split_credentials(url, user, password)
    failures = 0 # in a row, since the last stream that gave a line
    while true # not `loop`, which would swallow a StopIteration of the block
      following = in_block = false
      begin
        each_line(address, headers(user, password), silence) do |line|
          unless following
            following = true
            failures = 0
            log.call("following #{address}")
          end
          event = parse(line)
          next if event.keys == ['stillalive'] # a ping

          in_block = true
          yield event
          in_block = false
        end
      rescue *BROKEN => e
        raise if in_block # the block's own error, not one of the stream

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
  # payload: a Hash, or the text of one in JSON
  # method:  'POST' or 'PUT', the same to a server
  # timeout: seconds to wait for each of: the connection, the answer
  def publish(url, payload, user: nil, password: nil, method: 'POST', timeout: 30)
    address, user, password = split_credentials(url, user, password)
    request = Net::HTTPGenericRequest.new(method, true, true, address, headers(user, password))
    request.content_type = 'application/json'
    request.body = payload.is_a?(String) ? payload : JSON.generate(payload, max_nesting: 0)
    response = connect(address, timeout) { |http| http.request(request) }
    return response['X-Cursor'] if response.is_a?(Net::HTTPSuccess)

    raise PublishError.new(response.code.to_i, refusal_text(response, response.body))
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

  # The lines of a stream, however it is cut into pieces, until it breaks: then what broke it is raised.
  # What follows the last newline is half a line, and dropped.
  def each_line(address, headers, silence)
    unfinished = String.new(encoding: Encoding::BINARY)
    each_piece(address, headers, silence) do |piece|
      first, *rest = piece.b.split("\n", -1)
      unfinished << first.to_s
      rest.each do |start|
        line = unfinished.sub(/\A\0+/n, '').strip # some servers send a NUL after the newline
        unfinished = String.new(start, encoding: Encoding::BINARY)
        yield line.force_encoding(Encoding::UTF_8) unless line.empty?
      end
      raise StreamError, "a line of more than #{MAX_LINE_BYTES} bytes" if unfinished.bytesize > MAX_LINE_BYTES
    end
  end

  # The bytes of one GET as they come.
  def each_piece(address, headers, silence, &block)
    connect(address, silence) do |http|
      http.request(Net::HTTP::Get.new(address, headers)) do |response|
        raise Refused.new(response.code.to_i, read_refusal(response)) unless response.code == '200'

        response.read_body(&block)
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

  private_class_method :split_credentials, :headers, :connect, :each_line, :each_piece, :parse, :read_refusal,
                       :refusal_text, :text_of, :long_pause
end

# The command line.

if $PROGRAM_NAME == __FILE__
  require 'optparse'

  complain = ->(text) { warn "client.rb: #{text}" }
  options = {}
  timing = { silence: 11, max_wait: 60 }
  seconds = lambda do |text|
    Float(text).tap { |number| raise OptionParser::InvalidArgument unless number.positive? && number.finite? }
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
      timing[:silence] = seconds.call(text)
    end
    arguments.on('--max-wait SECONDS', 'the longest pause before a reconnect (60)') do |text|
      timing[:max_wait] = seconds.call(text)
    end
  end
  $stdout.sync = true
  begin
    words = parser.parse(ARGV)
    publishing = words.first == 'publish'
    raise ArgumentError, 'expected URL, or: publish URL JSON (--help explains)' if words.size != (publishing ? 3 : 1)

    if publishing
      puts PyPubSub.publish(words[1], words[2], **options)
    else
      PyPubSub.listen(words[0], log: complain, **options, **timing) do |event|
        puts JSON.generate(event, max_nesting: 0)
      end
    end
  rescue PyPubSub::PublishError => e
    complain.call(e.message)
    exit 1
  rescue ArgumentError, OptionParser::ParseError => e
    complain.call(e.message)
    exit 2
  rescue Errno::EPIPE
    exit # whoever read the events has left
  rescue Interrupt
    exit 130
  end
end
