-module(erllama_sup).
-behaviour(supervisor).

-export([start_link/0, init/1]).

-spec start_link() -> supervisor:startlink_ret().
start_link() ->
    supervisor:start_link({local, ?MODULE}, ?MODULE, []).

-spec init([]) -> {ok, {supervisor:sup_flags(), [supervisor:child_spec()]}}.
init([]) ->
    %% The link survives a lost node by itself; what restarts it is a defect.
    Flags = #{strategy => one_for_one, intensity => 5, period => 30},
    {ok, {Flags, [#{id => erllama_link, start => {erllama_link, start_link, []}}]}}.
