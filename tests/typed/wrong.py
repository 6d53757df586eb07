"""What a type checker must find: each line that ends in a comment `fault: CODE`, by that code, and no other line."""

import byhand
from byhand import LLM, SamplingParams

llm = LLM()
print(byhand.LMM)  # fault: attr-defined
llm.generat("hi")  # fault: attr-defined
print(llm.modle)  # fault: attr-defined
llm.start("hi").stepp()  # fault: attr-defined
llm.generate("hi", max_token=4)  # fault: call-overload
llm.generate("hi", max_tokens="4")  # fault: call-overload
llm.generate("hi", {"max_tokens": 4})  # fault: call-overload
llm.generate(5)  # fault: call-overload
llm.generate(None)  # fault: call-overload
print(llm.generate(["a", "b"]).text)  # fault: attr-defined
print(llm.generate("hi", n=2).text)  # fault: attr-defined
print(llm.generate("hi")[0])  # fault: index
print(llm.chat("hi", n=2).text)  # fault: attr-defined
llm.start("hi", n=2)  # fault: call-arg
llm.stream("hi", temprature=0.7)  # fault: call-arg
llm.start("hi").set(temprature=0.7)  # fault: call-arg
llm.checkpoint_params(temprature=0.7)  # fault: call-arg
SamplingParams(max_token=4)  # fault: call-arg
SamplingParams(stop=5)  # fault: arg-type
SamplingParams().replace(temprature=0.7)  # fault: call-arg
