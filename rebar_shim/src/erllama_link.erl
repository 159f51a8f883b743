%% Keeps the connection to the node that serves the models.
%%
%% Calls do not go through this process: they connect by themselves if need be.  It knows
%% the node's name, gives it the cookie, connects before the first call and again after
%% each loss, with growing pauses, and says once per outage what is wrong:
%%
%%            connected                nodedown
%%   trying ------------> up -----------------------> waiting
%%     |  ^                                            |   |
%%     |  +--------------------- pause over -----------+   | nodeup (a call connected)
%%     +------- failed, or connect_timeout over -----> waiting; up
%%
%% Settings (application environment): node, cookie, connect_timeout (ms), required.
-module(erllama_link).
-behaviour(gen_server).

-export([start_link/0, status/0, target/0]).
-export([init/1, handle_continue/2, handle_call/3, handle_cast/2, handle_info/2, terminate/2]).

-include_lib("kernel/include/logger.hrl").

%% A restarted node is there again in about a second; a machine may take minutes.
-define(FIRST_PAUSE, 500).
-define(LONGEST_PAUSE, 30000).

-define(TARGET, {erllama, node}).

-record(state, {
    node :: node(),
    timeout :: timeout(),
    status = trying :: trying | up | waiting,
    attempt :: undefined | {Helper :: pid(), Monitor :: reference()},
    timer :: undefined | reference(),
    pause = ?FIRST_PAUSE :: pos_integer(),
    told = false :: boolean()
}).

-spec start_link() -> gen_server:start_ret().
start_link() ->
    gen_server:start_link({local, ?MODULE}, ?MODULE, [], []).

%% The node that calls go to; undefined when the application does not run.
-spec target() -> node() | undefined.
target() ->
    persistent_term:get(?TARGET, undefined).

%% Whether the node is connected: up, trying (the first time) or waiting (to try again).
-spec status() -> {up | trying | waiting, node()}.
status() ->
    gen_server:call(?MODULE, status).

%% -- gen_server ------------------------------------------------------------------------

-spec init([]) -> {ok, #state{}} | {ok, #state{}, {continue, connect}} | {stop, term()}.
init([]) ->
    process_flag(trap_exit, true),
    try
        Node = sound(erllama_dist:target(env(node, erllama))),
        Cookie = sound(cookie(env(cookie, undefined))),
        Timeout = sound(timeout(env(connect_timeout, 5000))),
        Required = sound(required(env(required, false))),
        ok = sound(erllama_dist:start(Node)),
        Cookie =:= none orelse erlang:set_cookie(Node, Cookie),
        ok = net_kernel:monitor_nodes(true, [{node_type, all}]),
        begin_with(Required, #state{node = Node, timeout = Timeout})
    catch
        throw:{unsound, Reason} ->
            ?LOG_ERROR("erllama: ~ts", [unusable(Reason)]),
            {stop, Reason}
    end.

sound(ok) -> ok;
sound({ok, Value}) -> Value;
sound({error, Reason}) -> throw({unsound, Reason}).

begin_with(false, State) ->
    persistent_term:put(?TARGET, State#state.node),
    {ok, State, {continue, connect}};
begin_with(true, #state{node = Node} = State) ->
    #state{attempt = Attempt} = Trying = try_now(State),
    case await(Attempt, State#state.timeout) of
        up ->
            persistent_term:put(?TARGET, Node),
            {ok, up(Trying#state{attempt = undefined})};
        {down, Why} ->
            {stop, {node_unreachable, Node, unicode:characters_to_binary(Why)}}
    end.

await({Pid, Monitor}, Timeout) ->
    receive
        {attempted, Pid, Result} -> Result;
        {'DOWN', Monitor, process, Pid, Reason} -> {down, io_lib:format("~0tp", [Reason])}
    after Timeout ->
        {down, ["no answer within ", integer_to_list(Timeout), " ms"]}
    end.

-spec handle_continue(connect, #state{}) -> {noreply, #state{}}.
handle_continue(connect, State) ->
    {noreply, try_now(State)}.

-spec handle_call(term(), gen_server:from(), #state{}) -> {reply, term(), #state{}}.
handle_call(status, _From, State) ->
    {reply, {State#state.status, State#state.node}, State};
handle_call(_Request, _From, State) ->
    {reply, {error, unknown_call}, State}.

-spec handle_cast(term(), #state{}) -> {noreply, #state{}}.
handle_cast(_Message, State) ->
    {noreply, State}.

-spec handle_info(term(), #state{}) -> {noreply, #state{}}.
handle_info({nodeup, Node, _}, #state{node = Node} = State) ->
    {noreply, up(State)};
handle_info({nodedown, Node, _}, #state{node = Node} = State) ->
    {noreply, wait(down(lost(Node), State))};
handle_info({attempted, Pid, Result}, #state{attempt = {Pid, Monitor}} = State) ->
    true = erlang:demonitor(Monitor, [flush]),
    {noreply, attempted(Result, State#state{attempt = undefined})};
handle_info({'DOWN', Monitor, process, _, _Killed}, #state{attempt = {_, Monitor}} = State) ->
    Why = io_lib:format("no answer within ~p ms", [State#state.timeout]),
    {noreply, attempted({down, Why}, State#state{attempt = undefined})};
handle_info({timeout, Timer, give_up}, #state{timer = Timer, attempt = {Pid, _}} = State) ->
    exit(Pid, kill),
    {noreply, State#state{timer = undefined}};
handle_info({timeout, Timer, try_again}, #state{timer = Timer} = State) ->
    {noreply, try_now(State#state{timer = undefined})};
handle_info(_Message, State) ->
    {noreply, State}.

-spec terminate(term(), #state{}) -> ok.
terminate(_Reason, _State) ->
    _ = persistent_term:erase(?TARGET),
    ok.

%% -- transitions -----------------------------------------------------------------------

%% Connecting blocks for seconds where a host does not answer: not in this process.
try_now(#state{status = up} = State) ->
    State;
try_now(#state{node = Node, timeout = Timeout} = State) ->
    Link = self(),
    Attempt = spawn_monitor(fun() -> Link ! {attempted, self(), attempt(Node)} end),
    start_timer(Timeout, give_up, State#state{status = trying, attempt = Attempt}).

attempt(Node) ->
    case erllama_dist:connect(Node) of
        true -> up;
        false -> {down, erllama_dist:why_not(Node)}
    end.

%% The monitor of nodes may have told more by now than the attempt knew.
attempted(Result, #state{node = Node} = State) ->
    case {lists:member(Node, nodes(connected)), Result} of
        {true, _} -> up(State);
        {false, {down, Why}} -> wait(down(Why, State));
        {false, up} -> wait(down(lost(Node), State))
    end.

up(#state{status = up} = State) ->
    State;
up(#state{node = Node, told = Told} = State) ->
    Told andalso ?LOG_NOTICE("erllama: connected to ~p again", [Node]),
    cancel_timer(State#state{status = up, pause = ?FIRST_PAUSE, told = false}).

lost(Node) ->
    ["the connection was lost. If the node is gone, ", erllama_dist:how_to_start(Node)].

down(_Why, #state{told = true} = State) ->
    State;
down(Why, #state{node = Node} = State) ->
    ?LOG_WARNING(
        "erllama: ~p cannot be reached: ~ts. It is tried again in the background; until "
        "then calls exit with {nodedown, ~p}.",
        [Node, Why, Node]
    ),
    State#state{told = true}.

wait(#state{pause = Pause} = State) ->
    Longer = min(Pause * 2, ?LONGEST_PAUSE),
    start_timer(Pause, try_again, State#state{status = waiting, pause = Longer}).

start_timer(Time, Message, State) ->
    Cancelled = cancel_timer(State),
    Cancelled#state{timer = erlang:start_timer(Time, self(), Message)}.

cancel_timer(#state{timer = undefined} = State) ->
    State;
cancel_timer(#state{timer = Timer} = State) ->
    _ = erlang:cancel_timer(Timer),
    State#state{timer = undefined}.

%% -- settings --------------------------------------------------------------------------

env(Key, Default) ->
    application:get_env(erllama, Key, Default).

cookie(Absent) when Absent =:= undefined; Absent =:= nil ->
    {ok, none};
cookie(Cookie) when is_atom(Cookie) ->
    {ok, Cookie};
cookie(Text) ->
    try binary_to_atom(unicode:characters_to_binary(Text)) of
        '' -> {error, {bad_setting, cookie}};
        Cookie -> {ok, Cookie}
    catch
        %% Its value is a secret, also where it is wrong.
        error:_ -> {error, {bad_setting, cookie}}
    end.

timeout(Time) when is_integer(Time), Time > 0, Time =< 16#FFFFFFFF ->
    {ok, Time};
timeout(Time) ->
    {error, {bad_setting, connect_timeout, Time}}.

required(Required) when is_boolean(Required) ->
    {ok, Required};
required(Other) ->
    {error, {bad_setting, required, Other}}.

unusable({bad_node, Setting}) ->
    io_lib:format(
        "the setting node is ~0tp: it must be name@host, or a name alone for a node on this "
        "machine, as an atom, string or binary",
        [Setting]
    );
unusable({own_node, Node}) ->
    io_lib:format(
        "the setting node is ~p, which is this very node: name the one that was started with "
        "erllama node --name",
        [Node]
    );
unusable({bad_setting, cookie}) ->
    "the setting cookie is no cookie: it must be an atom, or a text of 1 to 255 characters";
unusable({bad_setting, connect_timeout, Time}) ->
    io_lib:format(
        "the setting connect_timeout is ~0tp: it must be a number of milliseconds above 0", [Time]
    );
unusable({bad_setting, required, Other}) ->
    io_lib:format("the setting required is ~0tp: it must be true or false", [Other]);
unusable({name_domains_differ, Own, Target}) ->
    io_lib:format(
        "this node is ~p and cannot connect to ~p: give both short names (-sname) or both "
        "long ones (-name)",
        [Own, Target]
    );
unusable({no_distribution, Reason}) ->
    io_lib:format(
        "this VM is not distributed and cannot become so (~0tp): start it with -sname or "
        "-name, and with -setcookie where there is no home for a cookie file",
        [Reason]
    ).
