"""`HypSchedStrategy` in a real `litellm.Router`, whose deployments answer by themselves."""

import asyncio
import warnings

import pytest

from hypsolve.router.pipeline import RoutedPipeline

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    litellm = pytest.importorskip(
        "litellm", reason='needs LiteLLM: pip install -e ".[litellm]"', exc_type=ImportError
    )
    from hypsolve.router.litellm import HypSchedStrategy

pytestmark = pytest.mark.filterwarnings("ignore")
MESSAGES = [{"role": "user", "content": "Tell me a story, please"}]


def router_of(*speeds, num_retries=0, **params):
    pipelines = {
        str(n): RoutedPipeline(name=str(n), prompt_token_s=s / 1024, output_token_s=s / 1024)
        for n, s in enumerate(speeds)
    }
    router = litellm.Router(
        model_list=[
            {
                "model_name": "m",
                "litellm_params": {
                    "model": "openai/x", "api_key": "k", "mock_response": "a b c",
                    **params.get(f"of_{name}", {}),
                },
                "model_info": {"id": name},
            }
            for name in pipelines
        ],
        num_retries=num_retries, retry_after=0, disable_cooldowns=True,
    )  # fmt: skip
    return router, HypSchedStrategy(pipelines).install(router)


@pytest.fixture(autouse=True)
def no_callbacks():
    yield
    litellm.logging_callback_manager._reset_all_callbacks()


async def until_released(strategy):
    for _ in range(500):
        if not strategy._sent:
            break
        await asyncio.sleep(0.01)
    assert not strategy._sent
    for p in range(len(strategy.router.pipelines)):
        assert strategy.router.outstanding_tokens(p) == (0, 0)
        assert strategy.router.n_in_flight(p) == 0


def chosen(answer):
    return answer._hidden_params["model_id"]


def test_requests_go_where_they_are_expected_to_end_first():
    async def script():
        slow = {"mock_delay": 0.5}
        router, strategy = router_of(1.0, 3.1, of_0=slow, of_1=slow)
        answers = await asyncio.gather(
            *(router.acompletion("m", MESSAGES, max_tokens=50) for _ in range(8))
        )
        names = [chosen(answer) for answer in answers]
        assert (names.count("0"), names.count("1")) == (6, 2)
        await until_released(strategy)
        assert strategy.router.expected_output_tokens() < 256  # learnt from usage

    asyncio.run(script())


def test_streams_are_released_at_their_end():
    async def script():
        router, strategy = router_of(1.0)
        stream = await router.acompletion("m", MESSAGES, stream=True)
        assert strategy.router.n_in_flight(0) == 1
        async for _ in stream:
            pass
        await until_released(strategy)

    asyncio.run(script())


def test_a_request_that_fails_is_released_once_for_each_attempt():
    async def script():
        broken = {"mock_response": "litellm.InternalServerError"}
        router, strategy = router_of(1.0, 100.0, num_retries=2, of_0=broken, of_1=broken)
        with pytest.raises(litellm.InternalServerError):
            await router.acompletion("m", MESSAGES, max_tokens=9)
        await until_released(strategy)

    asyncio.run(script())


def test_a_cancelled_request_is_released_at_once():
    async def script():
        router, strategy = router_of(1.0, of_0={"mock_delay": 30})
        task = asyncio.ensure_future(router.acompletion("m", MESSAGES))
        while not strategy._sent:
            await asyncio.sleep(0.01)
        assert strategy.router.n_in_flight(0) == 1
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await asyncio.sleep(0)
        assert strategy.router.outstanding_tokens(0) == (0, 0)

    asyncio.run(script())


def test_a_task_that_sends_many_requests_keeps_nothing_of_them():
    async def script():
        router, strategy = router_of(1.0)
        added = []
        add = strategy._task_ended
        strategy._task_ended = lambda number, ended: added.append(number) or add(number, ended)

        async def many():
            for _ in range(3):
                await router.acompletion("m", MESSAGES)
                await until_released(strategy)

        await asyncio.ensure_future(many())
        await asyncio.sleep(0)
        assert added == []  # nothing was left to be told when the task ended

    asyncio.run(script())


def test_deployments_that_litellm_leaves_out_get_nothing():
    async def script():
        router, strategy = router_of(1.0, 100.0)
        healthy = router.async_get_healthy_deployments

        async def without_first(**given):
            return [each for each in await healthy(**given) if each["model_info"]["id"] != "0"]

        router.async_get_healthy_deployments = without_first
        for _ in range(3):
            assert chosen(await router.acompletion("m", MESSAGES)) == "1"
        await until_released(strategy)

    asyncio.run(script())


def test_bad_input_is_named():
    pipeline = RoutedPipeline(name="a", prompt_token_s=1, output_token_s=1)
    router, strategy = router_of(1.0)
    with pytest.raises(ValueError, match="must name every deployment, got a; none is '0'"):
        HypSchedStrategy({"a": pipeline}).install(router)
    with pytest.raises(ValueError, match="max_request_s must be positive"):
        HypSchedStrategy({"a": pipeline}, max_request_s=0)
    with pytest.raises(ValueError, match="use the asynchronous methods"):
        strategy.get_available_deployment("m")
